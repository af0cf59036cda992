"""The zoo: names, facts, and how each model is built. Needs no torch until a model is built."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a zoo model without building it.

    Attributes:
        name: as given to `create_model`.
        family: "mobileclip", "mobileclip2", "casvit", "deit", "pvt" or "demo".
        kind: "clip" has `encode_image` and `encode_text`; "classifier" gives (B, classes).
        factory: "module:function" that takes `config` as keywords and returns the module.
        config: the factory's keyword arguments for this name.
        preprocess: how an image becomes the model's input.
        params: number of parameters as built (train-time form).
        macs: multiply-accumulates of one image through the deployable (reparameterized) image
            model, in millions.
        licence: of the published weights and code.
        source: where the architecture and its weights come from (paper, year, repository).
        weights: file inside the package with trained weights, for the embedded demo models.
        labels: file inside the package with one class name a line, where known.
        squash_from: input size, in pixels, from which upstream resizes without cropping.
        notes: what else a user should know.
    """

    name: str
    family: str
    kind: Literal["clip", "classifier"]
    factory: str
    config: dict[str, Any]
    preprocess: Preprocess
    params: int
    macs: float
    licence: str
    source: str
    weights: str | None = None
    labels: str | None = None
    squash_from: int | None = None
    notes: str = field(default="")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.preprocess.channels, *self.preprocess.size)


_MODELS: dict[str, ModelInfo] = {}
# Families register themselves when their (torch-free) table module is imported.
_TABLES = (
    "vitlet.models.tables.mobileclip",
    "vitlet.models.tables.casvit",
    "vitlet.models.tables.deit",
    "vitlet.models.tables.pvt",
    "vitlet.models.tables.demo",
)


def register(*infos: ModelInfo) -> None:
    """Add models to the registry; a name can be taken once."""
    for info in infos:
        if info.name in _MODELS:
            raise UsageError(f"model name {info.name!r} is already taken")
        _MODELS[info.name] = info


def _all() -> dict[str, ModelInfo]:
    for table in _TABLES:
        importlib.import_module(table)
    return _MODELS


def list_models(family: str | None = None) -> list[str]:
    """Return the names that `create_model` knows, sorted, of one family or of all.

    Raises:
        UsageError: there is no such family.
    """
    models = _all().values()
    families = sorted({info.family for info in models})
    if family is not None and family not in families:
        raise UsageError(f"unknown family {family!r}: the families are {', '.join(families)}")
    return sorted(info.name for info in models if family in (None, info.family))


def model_info(name: str) -> ModelInfo:
    """Return what is known of a zoo model: parameters, MACs, input, preprocessing, licence.

    Raises:
        UsageError: no such name; the message gives the nearest ones.
    """
    models = _all()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "see `vitlet models`"
        raise UsageError(f"unknown model {name!r}: {hint}")
    return models[name]


def create_model(
    name: str,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    **config: Any,
) -> nn.Module:
    """Build a zoo model in eval mode.

    Args:
        name: one of `list_models()`.
        weights: a checkpoint (`.safetensors`, or `.pt`/`.pth` read with weights_only). None gives
            default initialisation, or the embedded weights for the demo models.
        num_classes: size of the classifier's output (classifiers only).
        img_size: height and width of the input, in pixels.
        in_chans: channels of the input.
        **config: further constructor arguments of the family.

    Returns:
        The module, in eval mode, with `model.info` (a ModelInfo that reflects the arguments).

    Raises:
        UsageError: unknown name, or an argument that the family does not take.
        CheckpointError: the checkpoint cannot be read or does not fit.
        MissingDependencyError: torch is not installed.
    """
    from vitlet.models.build import build

    given = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, **config}
    return build(model_info(name), weights, {k: v for k, v in given.items() if v is not None})


def with_input(info: ModelInfo, config: dict[str, Any]) -> ModelInfo:
    """Return `info` with its configuration, and its preprocessing where that depends on it."""
    pre = info.preprocess
    size, chans = config.get("img_size"), config.get("in_chans")
    if size is not None and (size, size) != pre.size:
        ratio = pre.resize_to / max(pre.size)
        pre = replace(pre, size=(size, size), resize_to=round(ratio * size))
        if info.squash_from is not None and size >= info.squash_from:
            pre = replace(pre, resize="squash", resize_to=0)
    if chans is not None and chans != pre.channels:
        if chans not in (1, 3):
            raise UsageError(f"in_chans must be 1 (grey) or 3 (RGB), got {chans}")
        mean, std = sum(pre.mean) / len(pre.mean), sum(pre.std) / len(pre.std)
        mode: Literal["RGB", "L"] = "L" if chans == 1 else "RGB"
        pre = replace(pre, mode=mode, mean=(mean,) * chans, std=(std,) * chans)
    return replace(info, config={**info.config, **config}, preprocess=pre)
