"""How three Relax operators become loops, where TVM's own way is slow or unsafe on a CPU.

A dense convolution becomes a matrix product over (channels x kernel) columns ("im2col": Chellapilla
et al., "High Performance Convolutional Neural Networks for Document Processing", 2006), so that one
schedule serves it and the linear layers; a 1x1 convolution needs no columns at all. GELU takes
a polynomial erf that vectorizes, instead of a libm call per number.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import te, tirx, topi

from vitlet.export import tvm_convolution, tvm_math, tvm_rows

_OUT_FUSABLE = 4  # relax.OpPatternKind: elementwise consumers may be fused into it


def conv2d(builder: Any, call: Any) -> Any:
    """Lower `relax.nn.conv2d`: dense ones as contractions, the others as TVM does."""
    if tvm_convolution.takes(call):
        return tvm_convolution.windows(builder, call)
    attrs = call.attrs
    data, weight = call.args
    plain = attrs.data_layout == attrs.out_layout == "NCHW" and attrs.kernel_layout == "OIHW"
    sizes = [*weight.ty.shape, *list(data.ty.shape)[1:]]
    static = all(isinstance(size, tirx.IntImm) for size in sizes)
    if not plain or not static or attrs.groups != 1 or weight.ty.dtype != "float32":
        return tvm.ir.Op.get("relax.nn.conv2d").get_attr("FLegalize")(builder, call)
    channels, inner, high, wide = (int(size) for size in weight.ty.shape)
    columns = inner * high * wide
    # Of constants only: the constant folder computes it once, at compile time.
    flat = builder.emit(
        builder.call_te(topi.reshape, weight, (channels, columns), primfunc_name_hint="flatten")
    )
    stride = tuple(int(step) for step in attrs.strides)
    dilation = tuple(int(step) for step in attrs.dilation)
    top, left, bottom, right = (int(size) for size in attrs.padding)
    pointwise = (high, wide, top, left, bottom, right) == (1, 1, 0, 0, 0, 0) and stride == (1, 1)

    def contraction(image: Any, matrix: Any) -> Any:
        batch, _, rows, cols = image.shape
        out_rows = (rows + top + bottom - dilation[0] * (high - 1) - 1) // stride[0] + 1
        out_cols = (cols + left + right - dilation[1] * (wide - 1) - 1) // stride[1] + 1

        def column(n: Any, k: Any, p: Any) -> Any:
            y, x = p // out_cols, p % out_cols
            if pointwise:
                return image[n, k, y, x]
            down = y * stride[0] + (k // wide) % high * dilation[0] - top
            along = x * stride[1] + k % wide * dilation[1] - left
            inside = tirx.all(down >= 0, down < rows, along >= 0, along < cols)
            value = image[n, k // (high * wide), down, along]
            return tirx.if_then_else(inside, value, tirx.const(0.0, "float32"))

        # All positions in one loop: 7 x 7 of them fill vector registers better than 7 times 7.
        positions = out_rows * out_cols
        source = te.compute((batch, columns, positions), column, name="columns")
        k = te.reduce_axis((0, columns), name="k")
        product = te.compute(
            (batch, channels, positions),
            lambda n, c, p: te.sum(matrix[c, k] * source[n, k, p], axis=k),
            name="conv",
        )
        return te.compute(
            (batch, channels, out_rows, out_cols),
            lambda n, c, y, x: product[n, c, y * out_cols + x],
            name="image",
        )

    return builder.call_te(
        contraction,
        data,
        flat,
        primfunc_name_hint="conv2d",
        primfunc_attrs={"op_pattern": _OUT_FUSABLE},
    )


def gelu(builder: Any, call: Any) -> Any:
    """Lower `relax.nn.gelu` (the exact, erf form) with an erf of about 1e-7 absolute error."""

    def compute(x: Any) -> Any:
        if x.dtype != "float32":
            half = topi.erf(x * tirx.const(0.5**0.5, x.dtype)) * tirx.const(0.5, x.dtype)
            return x * (half + tirx.const(0.5, x.dtype))
        erf = topi.fast_erf(x * tirx.const(0.5**0.5, "float32"))
        return x * (tirx.const(0.5, "float32") + erf * tirx.const(0.5, "float32"))

    return builder.call_te(compute, call.args[0], primfunc_name_hint="gelu")


def take(builder: Any, call: Any) -> Any:
    """Lower `relax.take` with indices clipped into range: TVM's default reads past the end."""
    axis = call.attrs.axis
    return builder.call_te(
        topi.take, call.args[0], call.args[1], axis, mode="clip", primfunc_name_hint="take"
    )


LEGALIZE = {
    "relax.nn.conv2d": conv2d,
    "relax.nn.gelu": gelu,
    "relax.take": take,
    **tvm_math.LEGALIZE,
    **tvm_rows.LEGALIZE,
}
