"""Convolution and transposed convolution in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from vitlet.runtime.coreml.call import CHUNK, Call, half
from vitlet.runtime.coreml.table import op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def pads(
    call: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Return (before, after) per spatial axis of x.

    "same" gives ceil(size / stride) results; an odd one goes after, with "same_lower" before.
    """
    kind = call.choice("pad_type", "valid", ("valid", "custom", "same", "same_lower"))
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "custom":
        given = call.ints("pad", [0] * (2 * len(kernel)))
        if len(given) != 2 * len(kernel):
            raise call.bad(f"{len(given)} pads for {len(kernel)} spatial axes")
        return [*zip(given[::2], given[1::2], strict=True)]
    found = []
    for size, k, stride, dilation in zip(
        call["x"].shape[2:], kernel, strides, dilations, strict=True
    ):
        reach = (k - 1) * dilation + 1
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if kind == "same" else (more, less))
    return found


def pad_axes(x: Tensor, amounts: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Put a constant around the last axes; negative amounts cut off."""
    flat = [side for pair in reversed(amounts) for side in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def spatial(call: Call, weight: Tensor) -> tuple[list[int], list[int], list[int], int]:
    """Return (kernel, strides, dilations, groups), checked against the rank of x."""
    axes = weight.ndim - 2
    if axes not in _CONV or call["x"].ndim != weight.ndim:
        raise call.bad(f"x of {call['x'].ndim} axes, weight of {weight.ndim}")
    strides = call.ints("strides", [1] * axes)
    dilations = call.ints("dilations", [1] * axes)
    groups = call.whole("groups", 1)
    if len(strides) != axes or len(dilations) != axes:
        raise call.bad(f"{len(strides)} strides and {len(dilations)} dilations for {axes} axes")
    if min(*strides, *dilations, groups) < 1:
        raise call.bad("a stride, dilation or number of groups below 1")
    return [int(size) for size in weight.shape[2:]], strides, dilations, groups


@op("conv")
def conv(call: Call) -> Tensor:
    """Convolution of x (N, C_in, *D) with weight (C_out, C_in / groups, *K)."""
    x, weight, bias = call["x"], call["weight"], call.get("bias")
    kernel, strides, dilations, groups = spatial(call, weight)
    around = pads(call, kernel, strides, dilations)
    call.room([*x.shape[:2], *(n + a + b for n, (a, b) in zip(x.shape[2:], around, strict=True))])
    function = _CONV[len(kernel)]
    if not call.stressed:
        if all(before == after for before, after in around):
            amounts = [before for before, _ in around]
            return function(x, weight, bias, strides, amounts, dilations, groups)
        return function(pad_axes(x, around), weight, bias, strides, 0, dilations, groups)
    # Input channels in turn, as many at a time as make CHUNK products; at least one.
    x = pad_axes(x, around)
    size = x.shape[1] // groups
    step = max(1, CHUNK // max(1, math.prod(kernel)))
    split = x.reshape(x.shape[0], groups, size, *x.shape[2:])
    total: Tensor | None = None
    for start in range(0, max(size, 1), step):
        part = split[:, :, start : start + step].flatten(1, 2)
        term = half(
            function(part, weight[:, start : start + step], None, strides, 0, dilations, groups)
        )
        total = term if total is None else half(total + term)
    assert total is not None
    return total if bias is None else total + bias.reshape([1, -1] + [1] * len(kernel))


@op("conv_transpose")
def conv_transpose(call: Call) -> Tensor:
    """Transposed convolution of x (N, C_in, *D) with weight (C_in, C_out / groups, *K).

    The whole result is computed and then cut: "custom" by `pad`, "same" and `output_shape` to a
    size. Places that no input reaches hold the bias.
    """
    x, weight, bias = call["x"], call["weight"], call.get("bias")
    kernel, strides, dilations, groups = spatial(call, weight)
    axes = len(kernel)
    whole = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    call.room([x.shape[0], weight.shape[1] * groups, *whole])
    y = _TRANSPOSED[axes](x, weight, None, strides, 0, 0, groups, dilations)
    kind = call.choice("pad_type", "valid", ("valid", "custom", "same", "same_lower"))
    cut = call.ints("pad", [0] * (2 * axes)) if kind == "custom" else [0] * (2 * axes)
    target = [
        n - before - after for n, before, after in zip(whole, cut[::2], cut[1::2], strict=True)
    ]
    if kind.startswith("same"):
        target = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if call.args.get("output_shape") is not None:
        target = call.ints("output_shape")[-axes:]
        call.room([*y.shape[:2], *target])
    amounts = []
    for axis, (full, size) in enumerate(zip(whole, target, strict=True)):
        extra = full - size
        before = cut[2 * axis]
        if kind.startswith("same"):
            before = extra // 2 if kind == "same" else extra - extra // 2
        amounts.append((-before, before - extra))
    y = pad_axes(y, amounts)
    if call.stressed:
        y = half(y)
    return y if bias is None else y + bias.reshape([1, -1] + [1] * axes)
