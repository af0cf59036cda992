"""How convolutions with a window, channels last, are given to TVM to compute.

A border of zeros is a step of its own, so that the sum has no conditions; weights lie in the order
in which `vitlet.export.tvm_rules.window` reads them, rearranged once at compile time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import ir, relax, te, tirx

_OUT_FUSABLE = 4  # relax.OpPatternKind: elementwise consumers may be fused into it
_LANES = 8  # output channels are rounded up to this many, by weights of zero


def takes(builder: Any, call: Any) -> bool:
    """Tell whether `windows` computes this `relax.nn.conv2d`: any one but 1x1 and patches."""
    attrs = call.attrs
    data, weight = (argument.ty for argument in call.args)
    if attrs.data_layout != "NHWC" or attrs.out_layout != "NHWC" or attrs.kernel_layout != "OHWI":
        return False
    sizes = [*weight.shape, *list(data.shape)[1:]]
    if weight.dtype != "float32" or _constant(builder, call.args[1]) is None:
        return False
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return False
    window = [int(size) for size in list(weight.shape)[1:3]]
    flush = not any(int(p) for p in attrs.padding) and window == [int(s) for s in attrs.strides]
    return int(attrs.groups) > 1 or not flush


def windows(builder: Any, call: Any) -> Any:
    """Lower a `relax.nn.conv2d` that `takes` accepts."""
    attrs = call.attrs
    data, weight = call.args
    outputs, high, wide, inner = (int(size) for size in weight.ty.shape)
    groups = int(attrs.groups)
    down, along = (int(size) for size in attrs.strides)
    dilated_down, dilated_along = (int(size) for size in attrs.dilation)
    top, left, bottom, right = (int(size) for size in attrs.padding)
    share = outputs // groups  # output channels to each group
    depthwise = inner == 1 and groups > 1
    ready = outputs if groups > 1 else -(-outputs // _LANES) * _LANES
    part = next(p for p in (16, 8, 4, 2, 1) if (share if groups > 1 else ready) % p == 0)

    def convolve(image: Any, weights: Any) -> Any:
        batch, rows, columns, channels = image.shape
        tall = (int(rows) + top + bottom - dilated_down * (high - 1) - 1) // down + 1
        broad = (int(columns) + left + right - dilated_along * (wide - 1) - 1) // along + 1
        source = image
        if top or left or bottom or right or (depthwise and share > 1):
            lanes = outputs if depthwise else channels

            def bordered(n: Any, y: Any, x: Any, c: Any) -> Any:
                inside = tirx.all(y >= top, y < rows + top, x >= left, x < columns + left)
                value = image[n, y - top, x - left, c // share if depthwise and share > 1 else c]
                return tirx.if_then_else(inside, value, tirx.const(0, "float32"))

            shape = (batch, rows + top + bottom, columns + left + right, lanes)
            source = te.compute(shape, bordered, "bordered")
        y = te.reduce_axis((0, high), "y")
        x = te.reduce_axis((0, wide), "x")
        c = te.reduce_axis((0, inner), "c")

        def term(n: Any, i: Any, j: Any, o: Any) -> Any:
            at = (n, i * down + y * dilated_down, j * along + x * dilated_along)
            if depthwise:
                return te.sum(source[(*at, o)] * weights[y, x, o], axis=[y, x])
            first = o // share * inner if groups > 1 else 0
            return te.sum(
                source[(*at, first + c)] * weights[o // part, y, x, c, o % part], axis=[y, x, c]
            )

        sums = te.compute((batch, tall, broad, ready), term, "windows")
        if ready == outputs:
            return sums
        return te.compute((batch, tall, broad, outputs), lambda *at: sums[at], "cropped")

    return builder.call_te(
        convolve,
        data,
        relax.const(_arranged(_constant(builder, weight), part, depthwise=depthwise)),
        primfunc_name_hint="conv2d",
        primfunc_attrs={"op_pattern": _OUT_FUSABLE},
    )


def _constant(builder: Any, expression: Any) -> NDArray[Any] | None:
    while isinstance(expression, relax.Var):
        expression = builder.lookup_binding(expression)
    return expression.value.numpy() if isinstance(expression, ir.GenericConst) else None


def _arranged(weights: Any, part: int, *, depthwise: bool) -> NDArray[np.float32]:
    """(outputs, rows, columns, inputs) to (rows, columns, outputs), or in parts of the outputs."""
    outputs, *inner = weights.shape
    if depthwise:
        return np.ascontiguousarray(weights[..., 0].transpose(1, 2, 0))
    count = -(-outputs // part)
    padded = np.zeros((count * part, *inner), np.float32)
    padded[:outputs] = weights
    return np.ascontiguousarray(np.moveaxis(padded.reshape(count, part, *inner), 1, -1))
