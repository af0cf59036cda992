"""`BinaryLinearAttention`: ShiftAddViT's attention (https://arxiv.org/abs/2306.06446).

q and k are (B, H, N, D), of which only "above the head's threshold or not" is used; v is
(B, H, N, Dv). `csrc/kernels/binary_linear_attention.h` has the formula, also of the taps (H, 9).
`exact` tells the kernel alone not to round v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitlet.export.functions.operator import Operator


def _bits(name: str, variant: frozenset[str]) -> str:
    """Return the statements from q or k to numbers 0 and 1, or -1 and 1."""
    if f"{name}_threshold" in variant:
        level = f"{name}_level = Reshape ({name}_threshold, level_shape)"
    else:
        level = f"{name}_level = Identity (nothing)"
    lines = f"""
        {level}
        {name}_above = Greater ({name}, {name}_level)
        {name}_bits = Cast <to = 1> ({name}_above)"""
    if "signed" not in variant:
        return f"{lines}\n{name}_codes = Identity ({name}_bits)"
    return f"""{lines}
        {name}_doubled = Add ({name}_bits, {name}_bits)
        {name}_codes = Sub ({name}_doubled, one)"""


def _body(variant: frozenset[str], opset: int) -> str:
    product = f"""
        nothing = Constant <value_float = 0.0> ()
        one = Constant <value_float = 1.0> ()
        level_shape = Constant <value_ints = [1, -1, 1, 1]> ()
        {_bits("q", variant)}
        {_bits("k", variant)}
        k_columns = Transpose <perm = [0, 1, 3, 2]> (k_codes)
        kv = MatMul (k_columns, v)
        product = MatMul (q_codes, kv)"""
    if "taps" not in variant:
        return f"{product}\ny = Identity (product)"
    return f"""{product}
        half = Constant <value_float = 0.5> ()
        inverse_pi = Constant <value_float = 0.318309886> ()
        half_v = Mul (v, half)
        part = Mul (product, inverse_pi)
        r = Add (half_v, part)
        squares = Mul (r, r)
        last = Constant <value_ints = [-1]> ()
        square = ReduceSum (squares, last)
        length = Sqrt (square)
        is_zero = Equal (length, nothing)
        divisor = Where (is_zero, one, length)
        unit = Div (r, divisor)
        filter_shape = Constant <value_ints = [0, 1, -1, 1]> ()
        filters = Reshape (taps, filter_shape)
        local = Conv <group: int = @heads, pads = [4, 0, 4, 0]> (v, filters)
        y = Add (unit, local)"""


def _parts(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    return ("signed",) if attributes.get("signed") else ()


BINARY_LINEAR_ATTENTION = Operator(
    "BinaryLinearAttention",
    ("q", "k", "v"),
    ("q_threshold", "k_threshold", "taps"),
    {"exact": "int", "heads": "int", "signed": "int"},
    _parts,
    _body,
)
