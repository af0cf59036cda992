"""Fits binary attention layers to the softmax attention that they replace.

Thresholds become the mean of each head's numbers, as in ShiftAddViT but over images that are
chosen, not over the batch that happens to be there; or some deviations more, so that fewer codes
are 1 and attention is less even, where that fits better. The output projection is solved for:
ridge regression of what the old layer gave on what the new one mixes.
Layers are fitted from the first to the last, each on the inputs that it gets in the new model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitlet.layers.linear_angular_attention import LinearAngularAttention

_RIDGE = 1e-3  # over the mean square of the features
# Thresholds that are tried, in deviations above the mean.
_ABOVE = (0.0, 0.35, 0.7, 1.05, 1.4)


@torch.no_grad()
def calibrate(
    model: nn.Module, source: nn.Module, names: Sequence[str], images: Tensor
) -> dict[str, float]:
    """Set thresholds and projections in place.

    Args:
        model: the converted model.
        source: the model that it was made from.
        names: its binary attention layers, first to last.
        images: (B, C, H, W).

    Returns:
        Per layer, the length of the difference to the old layer's output over that output's.
    """
    wanted = _outputs(source.eval(), names, images)
    errors = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, LinearAngularAttention)
        given = _inputs(model, name, images)
        target = wanted[name]
        start = copy.deepcopy(layer.state_dict())
        tried = []
        for above in _ABOVE:
            layer.load_state_dict(start)
            error = _fit(layer, given, target, above)
            tried.append((error, above, copy.deepcopy(layer.state_dict())))
        errors[name], _, best = min(tried, key=lambda one: one[:2])
        layer.load_state_dict(best)
    return errors


def _fit(layer: LinearAngularAttention, given: Tensor, target: Tensor, above: float) -> float:
    """Set thresholds, solve for the output projection's weight and bias, and return the error."""
    q, k, _ = layer.directions(given)
    for threshold, x in ((layer.q_threshold, q), (layer.k_threshold, k)):
        threshold.copy_(x.mean(dim=(0, 2, 3)) + above * x.std(dim=(0, 2, 3)))
    mixed, flat = layer.mixed(given).flatten(0, 1), target.flatten(0, 1)
    _solve(layer, mixed, flat)
    error = torch.linalg.vector_norm(layer.proj(mixed) - flat)
    return float(error / torch.linalg.vector_norm(flat).clamp_min(1e-30))


def _solve(layer: LinearAngularAttention, mixed: Tensor, target: Tensor) -> None:
    """Let the output projection give the target, as far as it can."""
    assert isinstance(layer.proj, nn.Linear)
    features = torch.cat([mixed, torch.ones_like(mixed[:, :1])], dim=1).double()
    power = features.T @ features
    start = torch.cat([layer.proj.weight, layer.proj.bias[:, None]], dim=1).double()
    ridge = _RIDGE * power.diagonal().mean() * torch.eye(len(power), dtype=torch.float64)
    # What the images do not decide stays as it was.
    best = torch.linalg.solve(power + ridge, features.T @ target.double() + ridge @ start.T).T
    layer.proj.weight.copy_(best[:, :-1])
    layer.proj.bias.copy_(best[:, -1])


def _outputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Reached(Exception):
    """The forward pass has come to the layer that was asked for."""


def _inputs(model: nn.Module, name: str, images: Tensor) -> Tensor:
    found: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(hook)
    try:
        model(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
