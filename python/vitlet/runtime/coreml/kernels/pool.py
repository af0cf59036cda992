"""Pooling in one, two and three dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitlet.runtime.coreml.call import Call
from vitlet.runtime.coreml.kernels.conv import pad_axes, pads
from vitlet.runtime.coreml.table import op


class _Window:
    """The windows of one call: kernel, strides, and x with everything around that they touch."""

    def __init__(self, call: Call) -> None:
        x = call["x"]
        axes = x.ndim - 2
        self.kernel = call.ints("kernel_sizes")
        self.strides = call.ints("strides", [1] * axes)
        if axes not in (1, 2, 3) or len(self.kernel) != axes or len(self.strides) != axes:
            raise call.bad(f"{len(self.kernel)} kernel sizes for x of {x.ndim} axes")
        if min(*self.kernel, *self.strides) < 1:
            raise call.bad("a kernel size or stride below 1")
        self.around = pads(call, self.kernel, self.strides, [1] * axes)
        ceil = call.flag("ceil_mode")
        # What the last window of ceil mode reaches beyond the padding.
        self.beyond = []
        for size, k, stride, (before, after) in zip(
            x.shape[2:], self.kernel, self.strides, self.around, strict=True
        ):
            room = size + before + after - k
            if room < 0:
                raise call.bad(f"a window of {k} over {size} values padded by {before}, {after}")
            count = (math.ceil(room / stride) if ceil else room // stride) + 1
            # The last window must begin inside the values or the padding before them.
            if ceil and (count - 1) * stride >= size + before:
                count -= 1
            self.beyond.append(max((count - 1) * stride + k - size - before - after, 0))
        self.both = [
            (before, after + more)
            for (before, after), more in zip(self.around, self.beyond, strict=True)
        ]
        call.room(
            [*x.shape[:2], *(n + sum(s) for n, s in zip(x.shape[2:], self.both, strict=True))]
        )

    def maximum(self, x: Tensor) -> Tensor:
        """Return the largest value of each window; what is around counts as -infinity."""
        x = pad_axes(x, self.both, -math.inf)
        function = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
        return function[x.ndim](x, self.kernel, self.strides)

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of each window; what is around counts as 0."""
        x = pad_axes(x, self.both)
        if x.ndim == 5:
            return functional.avg_pool3d(x, self.kernel, self.strides, divisor_override=1)
        if x.ndim == 4:
            return functional.avg_pool2d(x, self.kernel, self.strides, divisor_override=1)
        kernel, strides = [1, *self.kernel], [1, *self.strides]
        return functional.avg_pool2d(x.unsqueeze(2), kernel, strides, divisor_override=1).squeeze(2)

    def counts(self, x: Tensor, with_padding: bool) -> Tensor:
        """Return how many values each window averages; ceil mode's extra reach never counts."""
        ones = x.new_ones([1, 1, *x.shape[2:]])
        if with_padding:
            ones = pad_axes(ones, self.around, 1.0)
            outer = [(0, more) for more in self.beyond]
        else:
            outer = self.both
        kept, self.both = self.both, outer
        try:
            return self.total(ones)
        finally:
            self.both = kept


@op("max_pool")
def max_pool(call: Call) -> Tensor:
    """The largest value of each window."""
    return _Window(call).maximum(call["x"])


@op("avg_pool")
def avg_pool(call: Call) -> Tensor:
    """The mean of each window, over the padding too unless it is excluded."""
    x, window = call["x"], _Window(call)
    counts = window.counts(x, not call.flag("exclude_padding_from_average"))
    return window.total(x) / counts


@op("l2_pool")
def l2_pool(call: Call) -> Tensor:
    """The square root of each window's sum of squares."""
    return torch.sqrt(_Window(call).total(call["x"].square()))
