"""`Linear`, `Int8Linear` and `ShiftLinear`: ``activation(x @ weight.T + bias) + residual``.

x is (..., K), the weight (N, K). `Linear` has a float32 weight; `precision` tells the kernel alone
whether products may be rounded to bfloat16. The other two round x to 8 bits row by row, as
`csrc/kernels/shift_linear.h` says, and multiply by integers and a scale per output channel:

- `Int8Linear`: int8 (N, K).
- `ShiftLinear`: signs and exponents, 4 bits each, in uint8 (N, ceil(K / 2)): the lower half of a
  byte is the even input. Code 0 is 0, 1 to 7 are 1 to 64, 9 to 15 the same with a minus. With
  `wide`, (2, N, ceil(K / 2)): 256 times the first part plus the second, where 8 is -128.
"""

from __future__ import annotations

from vitlet.export.functions.operator import Operator, activation_part, epilogue

NARROW = (0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64)
WIDE = (*NARROW[:8], -128, *NARROW[9:])


def _linear(variant: frozenset[str], opset: int) -> str:
    return f"""
        columns = Transpose <perm = [1, 0]> (weight)
        product = MatMul (x, columns)
        {epilogue("product", variant, opset)}"""


def _rounded(variant: frozenset[str], opset: int) -> str:
    """Round x, multiply by the float32 `integers` and scale; all sums of integers are exact."""
    if opset < 18:
        largest = "ReduceMax <axes = [-1]> (size)"
    else:
        largest = "ReduceMax (size, last)"
    return f"""
        last = Constant <value_ints = [-1]> ()
        levels = Constant <value_float = 127.0> ()
        least = Constant <value_float = 7.8886090522e-31> ()
        nothing = Constant <value_float = 0.0> ()
        size = Abs (x)
        most = {largest}
        empty = Less (most, least)
        inverse_of_all = Div (levels, most)
        inverse = Where (empty, nothing, inverse_of_all)
        scaled_x = Mul (x, inverse)
        rounded = Round (scaled_x)
        row_scale_of_all = Div (most, levels)
        row_scale = Where (empty, nothing, row_scale_of_all)
        columns = Transpose <perm = [1, 0]> (integers)
        sums = MatMul (rounded, columns)
        factor = Mul (row_scale, scale)
        product = Mul (sums, factor)
        {epilogue("product", variant, opset)}"""


def _int8(variant: frozenset[str], opset: int) -> str:
    return f"integers = Cast <to = 1> (weight)\n{_rounded(variant, opset)}"


def _shift(variant: frozenset[str], opset: int) -> str:
    wide = "wide" in variant
    table = ", ".join(str(value) for value in (WIDE if wide else NARROW))
    values = f"""
        numbers = Cast <to = 6> (codes)
        sixteen = Constant <value = int32 {{16}}> ()
        high = Div (numbers, sixteen)
        high_only = Mul (high, sixteen)
        low = Sub (numbers, high_only)
        behind = Constant <value_ints = [-1]> ()
        low_column = Unsqueeze (low, behind)
        high_column = Unsqueeze (high, behind)
        pairs = Concat <axis = -1> (low_column, high_column)
        flat_shape = Constant <value_ints = [{"0, 0" if wide else "0"}, -1]> ()
        flat = Reshape (pairs, flat_shape)
        first = Constant <value_ints = [0]> ()
        stop = Constant <value_int: int = @in_features> ()
        stops = Unsqueeze (stop, first)
        used = Slice (flat, first, stops, behind)
        table = Constant <value = float[16] {{{table}}}> ()"""
    if not wide:
        return f"{values}\nintegers = Gather (table, used)\n{_rounded(variant, opset)}"
    return f"""{values}
        parts = Gather (table, used)
        weights = Constant <value = float[2, 1, 1] {{256, 1}}> ()
        weighted = Mul (parts, weights)
        integers = ReduceSum <keepdims = 0> (weighted, first)
        {_rounded(variant, opset)}"""


_OPTIONAL = ("bias", "residual")
LINEAR = Operator(
    "Linear",
    ("x", "weight"),
    _OPTIONAL,
    {"precision": "string", "activation": "string"},
    activation_part,
    _linear,
)
INT8_LINEAR = Operator(
    "Int8Linear",
    ("x", "weight", "scale"),
    _OPTIONAL,
    {"activation": "string"},
    activation_part,
    _int8,
    {"weight": "int8"},
)
SHIFT_LINEAR = Operator(
    "ShiftLinear",
    ("x", "codes", "scale"),
    _OPTIONAL,
    {"activation": "string", "in_features": "int", "wide": "int"},
    lambda values: (*activation_part(values), *(("wide",) if values.get("wide") else ())),
    _shift,
    {"codes": "uint8"},
)
