"""Learned image positions of one grid, stretched to another."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def _grid(tokens: int, extra: int) -> int:
    side = math.isqrt(max(tokens - extra, 0))
    return side if side > 0 and side * side == tokens - extra else 0


def resize_positions(positions: Tensor, tokens: int) -> Tensor | None:
    """Resize (..., N, dim) positions of a square grid to `tokens`, bicubic and antialiased.

    A class token in front, which a count of tokens one above a square shows, is kept as it is.

    Returns:
        (..., tokens, dim), or None where the two counts are not both square grids.
    """
    for extra in (0, 1):
        old, new = _grid(positions.shape[-2], extra), _grid(tokens, extra)
        if old and new:
            break
    else:
        return None
    lead, dim = positions.shape[:-2], positions.shape[-1]
    flat = positions.float().reshape(-1, positions.shape[-2], dim)
    first, grid = flat[:, :extra], flat[:, extra:]
    grid = grid.transpose(1, 2).reshape(-1, dim, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    resized = torch.cat((first, grid.flatten(2).transpose(1, 2)), dim=1)
    return resized.reshape(*lead, tokens, dim).to(positions.dtype)


def fit_positions(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Resize the image positions of a checkpoint to those a model wants.

    Returns:
        The state, and the names that were resized.
    """
    result, changed = dict(state), []
    for key, tensor in state.items():
        target = wanted.get(key)
        image_positions = key.endswith("pos_embed") and not key.startswith("text")
        if target is None or not image_positions or tensor.shape == target.shape:
            continue
        if tensor.ndim != target.ndim or tensor.shape[-1] != target.shape[-1]:
            continue
        resized = resize_positions(tensor, target.shape[-2])
        if resized is not None:
            result[key] = resized
            changed.append(key)
    return result, changed
