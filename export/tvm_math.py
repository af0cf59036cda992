"""Functions of one number as additions, multiplications and selections, which fill vectors.

TVM calls libm for each of them, one number at a time. The formulas are Cephes' (Moshier, "Methods
and Programs for Mathematical Functions", 1989), in float32. NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx, topi

_LEAST, _MOST = -87.33654, 88.37626  # exp is a normal number of float32 between them
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
# tanh(x) = x p(x^2) / q(x^2) to |x| = 7.9, where it rounds to 1 (as in csrc/kernels and Eigen).
_TANH_MOST = 7.90531110763549805
_TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def constant(value: float) -> Any:
    """Return a float32 constant of TensorIR."""
    return tirx.const(value, "float32")


def clamp(x: Any, least: float, most: float) -> Any:
    """Return x between two numbers; unlike with min and max, NaN stays NaN."""
    above = tirx.Select(x < constant(least), constant(least), x)
    return tirx.Select(above > constant(most), constant(most), above)


def polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Return a polynomial, the highest power's coefficient first."""
    value = constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + constant(coefficient)
    return value


def exp(x: Any) -> Any:
    """Return e^x within 2e-7 of its value; 1.2e-38 below -87.3, 2.4e38 above 88.3."""
    x = clamp(x, _LEAST, _MOST)
    power = tirx.floor(x * constant(1.44269504088896341) + constant(0.5))
    # ln 2 in two parts, so that the difference is exact.
    rest = x - power * constant(0.693359375) + power * constant(2.12194440e-4)
    value = polynomial(_EXP, rest) * rest * rest + rest + constant(1)
    bits = (tirx.Cast("int32", power) + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return value * tirx.reinterpret("float32", bits)


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""
    return constant(1) / (constant(1) + exp(constant(0) - x))


def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent within 3e-7 of its value."""
    x = clamp(x, -_TANH_MOST, _TANH_MOST)
    square = x * x
    return x * polynomial(_TANH_P, square) / polynomial(_TANH_Q, square)


def elementwise(function: Any) -> Any:
    """Return a lowering of a Relax operator of one float32 tensor by a function of one number."""

    def lower(builder: Any, call: Any) -> Any:
        if str(call.args[0].ty.dtype) != "float32":
            return call.op.get_attr("FLegalize")(builder, call)
        name = call.op.name.rsplit(".", 1)[-1]

        def compute(x: Any) -> Any:
            return topi.math.te.compute(x.shape, lambda *at: function(x(*at)), name)

        return builder.call_te(compute, call.args[0], primfunc_name_hint=name)

    return lower


def silu(x: Any) -> Any:
    """Return x sigmoid(x)."""
    return x * sigmoid(x)


def gelu_tanh(x: Any) -> Any:
    """Return GELU in its form with a hyperbolic tangent."""
    inner = constant(0.7978845608028654) * (x + constant(0.044715) * x * x * x)
    return constant(0.5) * x * (constant(1) + tanh(inner))


LEGALIZE = {
    "relax.exp": elementwise(exp),
    "relax.sigmoid": elementwise(sigmoid),
    "relax.tanh": elementwise(tanh),
    "relax.nn.silu": elementwise(silu),
    "relax.nn.gelu_tanh": elementwise(gelu_tanh),
}
