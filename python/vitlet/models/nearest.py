"""Which zoo model a checkpoint belongs to, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from vitlet.checkpoint import is_optional, looks_merged
from vitlet.errors import CheckpointError
from vitlet.models.build import meta_model
from vitlet.models.layouts import APPLE_PREFIXES, HEAD_BIASES, translate
from vitlet.models.registry import list_models, model_info

_HEADS = ("head.weight", "head.bias", "dist_head.weight", "dist_head.bias")
_NEAR = 0.5  # share of a checkpoint's tensors below which no zoo model is called near


def _counts(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many tensors agree in name and shape, and how many there are in either."""
    agree = sum(
        key in wanted and wanted[key].shape == tensor.shape
        for key, tensor in state.items()
        if not is_optional(key)
    )
    names = {key for key in (*state, *wanted) if not is_optional(key)}
    return agree, len(names)


@lru_cache(maxsize=64)
def _table(name: str, second_head: bool, merged: bool) -> dict[str, Tensor]:
    """Return a zoo model's state dict without memory for its numbers."""
    info = model_info(name)
    config = {}
    if "distillation" in info.config:
        config["distillation"] = second_head
    if info.kind == "clip":
        config["merged"] = merged
    return meta_model(info, **config).state_dict()


def nearest(state: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """Return the zoo name that fits a checkpoint best.

    The two versions of MobileCLIP have networks in common. A checkpoint that fits both is of the
    first version where it has Apple's names, or a head bias that is zero.

    Returns:
        The name, how many tensors fit, and of how many; equal counts mean a perfect fit.
    """
    best, best_rank = ("", 0, 1), (0.0, False)
    shapes = {key: tensor.to("meta") for key, tensor in state.items()}
    no_bias = [key for key in HEAD_BIASES if key in state and not bool(torch.any(state[key] != 0))]
    first_version = bool(no_bias) or any(key.startswith(APPLE_PREFIXES) for key in state)
    second_head = any(key.startswith("dist_head.") for key in state)
    merged = looks_merged(state)
    for name in list_models():
        wanted = _table(name, second_head, merged)
        is_first = model_info(name).family == "mobileclip"
        given = {k: v for k, v in shapes.items() if not (is_first and k in no_bias)}
        try:
            agree, total = _counts(translate(given, wanted), wanted)
        except CheckpointError:  # the other version's head
            continue
        rank = (agree / total, is_first == first_version)
        if rank > best_rank:
            best, best_rank = (name, agree, total), rank
    return best


def advice(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> str:
    """Say what a checkpoint that does not fit `name` could be used for.

    Args:
        state: the checkpoint.
        wanted: the state dict of the model that it was meant for.
        name: that model's zoo name.
    """
    wrong = {k for k in wanted if k in state and state[k].shape != wanted[k].shape}
    same_names = {k for k in wanted if not is_optional(k)} == {
        k for k in state if not is_optional(k)
    }
    if same_names and wrong and wrong <= set(_HEADS):
        classes = next(int(state[key].shape[0]) for key in _HEADS if key in wrong)
        return f"the checkpoint has {classes} classes: build with num_classes={classes}"
    found, agree, total = nearest(state)
    if agree == total:
        return f"it fits {found!r}"
    if agree / total < _NEAR:
        return "no zoo model is near it"
    same = " itself" if found == name else ""
    return f"the nearest zoo model is {found!r}{same} ({agree} of {total} tensors fit)"
