"""Scatters: a copy of `data` with `updates` worked in, in order, so that equal places are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.kernels.index import wrapped
from vitlet.runtime.coreml.table import op

_AT: dict[str, Callable[..., Any]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}
_MODES = ("update", "div", *_AT)


def _scattered(call: Call, places: tuple[Tensor, ...], mode: str) -> Tensor:
    data, updates = np.array(call["data"].numpy()), call["updates"].numpy()
    index = tuple(place.numpy() for place in places)
    if mode == "update":
        # Where places repeat the last update stays, as in a loop.
        data[index] = updates
    elif mode == "div":
        if data.dtype.kind == "f":
            np.divide.at(data, index, updates)
        else:
            np.floor_divide.at(data, index, updates)
    else:
        _AT[mode](data, index, updates)
    return torch.from_numpy(data)


@op("scatter")
def scatter(call: Call) -> Tensor:
    """Whole slices of an axis."""
    data, places = call["data"], call["indices"]
    axis = call.axis(default=0, rank=data.ndim)
    mode = call.choice("mode", "update", _MODES)
    at = wrapped(call, places, data.shape[axis])
    everywhere = [torch.arange(size) for size in data.shape]
    everywhere[axis] = at
    return _scattered(call, torch.meshgrid(*everywhere, indexing="ij"), mode)


@op("scatter_along_axis")
def scatter_along_axis(call: Call) -> Tensor:
    """One element of the axis per place."""
    data, places = call["data"], call["indices"]
    axis = call.axis(default=0, rank=data.ndim)
    mode = call.choice("mode", "add", _MODES)
    grid = [*torch.meshgrid(*(torch.arange(size) for size in places.shape), indexing="ij")]
    grid[axis] = wrapped(call, places, data.shape[axis])
    return _scattered(call, tuple(grid), mode)


@op("scatter_nd")
def scatter_nd(call: Call) -> Tensor:
    """Slices at places whose coordinates are the last axis of the indices."""
    data, places = call["data"], call["indices"]
    mode = call.choice("mode", "add", _MODES)
    parts = range(places.shape[-1])
    at = tuple(wrapped(call, places[..., part], data.shape[part]) for part in parts)
    return _scattered(call, at, mode)
