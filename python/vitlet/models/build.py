"""From a name and arguments to a module with its weights."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from vitlet.checkpoint import fit, load_state_dict, looks_merged
from vitlet.errors import UsageError
from vitlet.models.registry import ModelInfo, with_input

_HEADS = ("head.", "dist_head.")

log = logging.getLogger(__name__)


def _factory(info: ModelInfo) -> tuple[Callable[..., nn.Module], dict[str, inspect.Parameter]]:
    """Return a model's factory and the keywords it takes."""
    module, name = info.factory.split(":")
    factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    taken = inspect.signature(factory).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        # A thin factory: the class that it returns has the list.
        taken = inspect.signature(get_type_hints(factory)["return"]).parameters
    return factory, dict(taken)


def _check(info: ModelInfo, taken: dict[str, inspect.Parameter], given: dict[str, Any]) -> None:
    """Refuse arguments that this model does not take, or cannot mean."""
    for name, value in given.items():
        if name == "num_classes" and info.kind == "clip":
            raise UsageError(
                f"{info.name} has no classifier, so num_classes={value!r} means nothing: it takes "
                "any class names as prompts"
            )
        if name not in taken:
            near = difflib.get_close_matches(name, taken, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(taken))}"
            raise UsageError(f"{info.name} takes no argument {name!r}: {hint}")
        if name in ("num_classes", "img_size", "in_chans") and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise UsageError(f"{name} must be a whole number from 1 up, got {value!r}")


def _construct(factory: Callable[..., nn.Module], config: dict[str, Any]) -> nn.Module:
    """Call a factory; what the configuration makes impossible is the caller's mistake."""
    try:
        return factory(**config)
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"this configuration cannot be built ({error}): {config}") from error


def _empty(factory: Callable[..., nn.Module], config: dict[str, Any]) -> nn.Module:
    """Build without drawing initial weights: the checkpoint overwrites every one of them."""
    with torch.device("meta"):
        model = _construct(factory, config)
    kept = set(model.state_dict())
    if any(name not in kept for name, _ in model.named_buffers()):
        # Buffers that no checkpoint holds (a causal mask) need their real values.
        return _construct(factory, config)
    return model.to_empty(device="cpu")


def meta_model(info: ModelInfo, **config: Any) -> nn.Module:
    """Build a model without memory for its weights: names and shapes only."""
    factory, _ = _factory(info)
    with torch.device("meta"):
        return _construct(factory, {**info.config, **config})


def _from_checkpoint(
    state: dict[str, Tensor], taken: dict[str, inspect.Parameter]
) -> dict[str, Any]:
    """Return arguments that the checkpoint's tensor names decide."""
    found: dict[str, Any] = {}
    if "distillation" in taken:
        found["distillation"] = any(key.startswith("dist_head.") for key in state)
    if "merged" in taken and looks_merged(state):
        found["merged"] = True
    return found


def _embedded(info: ModelInfo, given: dict[str, Any]) -> Path | None:
    """Return the file of trained weights inside the package, where there is one of this shape."""
    if info.weights is None:
        return None
    free = ("img_size", "features_only", "num_classes")
    changed = [
        f"{name}={value!r}"
        for name, value in given.items()
        if name not in free and info.config.get(name, value) != value
    ]
    if changed:
        log.warning("%s: untrained, for its weights are not for %s", info.name, ", ".join(changed))
        return None
    return Path(__file__).resolve().parents[1] / info.weights


def build(info: ModelInfo, weights: str | Path | None, given: dict[str, Any]) -> nn.Module:
    """Build a zoo model in eval mode and load its weights.

    Args:
        info: the model.
        weights: a checkpoint, or None for default initialisation (the embedded weights for a
            model that has them, unless `given` changes its shape).
        given: arguments beyond the model's own configuration.

    Returns:
        The module, with `info` set to `info` as the arguments change it.

    Raises:
        UsageError: an argument that the model does not take, or an impossible value.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    factory, taken = _factory(info)
    _check(info, taken, given)
    path = Path(weights) if weights is not None else _embedded(info, given)
    built_as = with_input(info, given)
    if path is None:
        model = _construct(factory, built_as.config)
    else:
        state = load_state_dict(path)
        built_as = with_input(info, {**_from_checkpoint(state, taken), **given})
        if weights is None and built_as.config["num_classes"] != info.config["num_classes"]:
            # The embedded weights for other classes: their features, and a head to train.
            model = _construct(factory, built_as.config)
            state = {
                key: model.state_dict().get(key, tensor) if key.startswith(_HEADS) else tensor
                for key, tensor in state.items()
            }
        else:
            model = _empty(factory, built_as.config)
        fit(model, state, info.name)
    model.info = built_as  # type: ignore[assignment]
    return model.eval()
