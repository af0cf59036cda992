"""Quantized activations (iOS 17)."""

from __future__ import annotations

import torch
from torch import Tensor

from vitlet.runtime.coreml.call import INTEGERS, Call
from vitlet.runtime.coreml.table import op


def _along(call: Call, name: str) -> Tensor:
    """Return scale or zero point, shaped to broadcast along the axis."""
    value, x = call.get(name), call["input"]
    if value is None:
        return torch.zeros([])
    if value.numel() == 1 and value.ndim < 2:
        return value.reshape([])
    axis = call.axis("axis", None, x.ndim)
    if value.numel() != x.shape[axis]:
        raise call.bad(f"{value.numel()} values of {name} for {x.shape[axis]} channels")
    return value.reshape([-1] + [1] * (x.ndim - axis - 1))


@op("quantize")
def quantize(call: Call) -> Tensor:
    """clip(round(x / scale) + zero point), halves to the even neighbour."""
    low, high = INTEGERS[call.choice("output_dtype", None, ("int8", "uint8"))]
    scaled = torch.round(call["input"] / _along(call, "scale")) + _along(call, "zero_point")
    return scaled.clamp(low, high)


@op("dequantize")
def dequantize(call: Call) -> Tensor:
    """Scale * (x - zero point)."""
    return _along(call, "scale") * (call["input"] - _along(call, "zero_point")).float()
