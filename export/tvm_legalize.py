"""How Relax operators become loops, where TVM's own way is slow or unsafe on a CPU.

GELU takes a polynomial erf that vectorizes, instead of a libm call per number; so do the functions
of `vitlet.export.tvm_math`. Products are lowered before (`vitlet.export.tvm_products`).
"""

from __future__ import annotations

from typing import Any

from tvm import tirx, topi

from vitlet.export import tvm_convolution, tvm_math, tvm_rows


def conv2d(builder: Any, call: Any) -> Any:
    """Lower `relax.nn.conv2d`: sums over windows, channels last; TVM's way for what is left."""
    if tvm_convolution.takes(builder, call):
        return tvm_convolution.windows(builder, call)
    return call.op.get_attr("FLegalize")(builder, call)


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
