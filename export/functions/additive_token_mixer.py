"""`AdditiveTokenMixer`: CAS-ViT's token mixer (https://arxiv.org/abs/2408.03703) in one call.

`precision` is that of the q, k, v product. "bf16" is the kernel's alone; with "int8" and "shift"
the body rounds too: each pixel to 8 bits by itself, and each output's float32 weights to 8 bits or
to signed powers of two, as `vitlet.ops.pack_int8_weight` and `pack_shift_weight` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitlet.export.functions.operator import Operator

_GATES = ("q_conv_weight", "q_conv_bias", "q_point_weight", "q_pool_weight",
          "k_conv_weight", "k_conv_bias", "k_point_weight", "k_pool_weight")  # fmt: skip

# The gates of a TOKEN, q or k.
_GATE = """
    TOKEN_conv = Conv <pads = [1, 1, 1, 1], group: int = @channels>
        (TOKEN, TOKEN_conv_weight, TOKEN_conv_bias)
    TOKEN_relu = Relu (TOKEN_conv)
    TOKEN_point = Conv (TOKEN_relu, TOKEN_point_weight)
    TOKEN_gate = Sigmoid (TOKEN_point)
    TOKEN_gated = Mul (TOKEN, TOKEN_gate)
    TOKEN_mean = GlobalAveragePool (TOKEN_gated)
    TOKEN_pool = Conv (TOKEN_mean, TOKEN_pool_weight)
    TOKEN_weights = Sigmoid (TOKEN_pool)
    TOKEN_out = Mul (TOKEN_gated, TOKEN_weights)
"""

# SPLIT3 is spelled as the opset wants it; GATES are those of q and of k.
_BODY = """
    qkv = Conv (pixels, weights, qkv_bias)
    q, k, v = SPLIT3 (qkv)
    GATES
    sum = Add (q_out, k_out)
    context = Conv <pads = [1, 1, 1, 1], group: int = @channels> (sum, dwc_weight, dwc_bias)
    mixed = Mul (context, v)
    result = Conv <pads = [1, 1, 1, 1], group: int = @channels> (mixed, proj_weight, proj_bias)
"""

# MAX(...) is the largest along axis 1, spelled as the opset wants it.
_ROUND_PIXELS = """
    levels = Constant <value_float = 127.0> ()
    least = Constant <value_float = 7.8886090522e-31> ()
    zero = Constant <value_float = 0.0> ()
    one = Constant <value_float = 1.0> ()
    size = Abs (image)
    most = MAX(size)
    empty = Less (most, least)
    inverse_of_all = Div (levels, most)
    inverse = Where (empty, zero, inverse_of_all)
    scaled = Mul (image, inverse)
    steps = Round (scaled)
    step_of_all = Div (most, levels)
    step = Where (empty, zero, step_of_all)
    pixels = Mul (steps, step)
    weight_size = Abs (qkv_weight)
"""
_ROUND_INT8 = """
    weight_most = MAX(weight_size)
    weight_step = Div (weight_most, levels)
    has_step = Greater (weight_step, zero)
    divisor = Where (has_step, weight_step, one)
    weight_scaled = Div (qkv_weight, divisor)
    weight_steps = Round (weight_scaled)
    weights = Mul (weight_steps, weight_step)
"""
# Of a weight of 0, the logarithm is minus infinity.
_ROUND_SHIFT = """
    two = Constant <value_float = 2.0> ()
    six = Constant <value_float = 6.0> ()
    log_of_two = Constant <value_float = 0.69314718> ()
    lowest = Constant <value_float = -120.0> ()
    logarithm = Log (weight_size)
    octaves = Div (logarithm, log_of_two)
    octave = Round (octaves)
    top_of_all = MAX(octave)
    top = Max (top_of_all, lowest)
    bottom = Sub (top, six)
    kept_octave = Max (octave, bottom)
    power = Pow (two, kept_octave)
    least_power = Pow (two, bottom)
    half_least = Div (least_power, two)
    too_small = Less (weight_size, half_least)
    sign = Sign (qkv_weight)
    signed = Mul (sign, power)
    weights = Where (too_small, zero, signed)
"""


def _rounded(variant: frozenset[str], opset: int) -> str:
    if not variant & {"int8", "shift"}:
        return "pixels = Identity (image)\nweights = Identity (qkv_weight)"
    text = _ROUND_PIXELS + (_ROUND_INT8 if "int8" in variant else _ROUND_SHIFT)
    if opset < 18:
        return re.sub(r"MAX\((\w+)\)", r"ReduceMax <axes = [1]> (\1)", text)
    text = re.sub(r"MAX\((\w+)\)", r"ReduceMax (\1, channel_axis)", text)
    return f"channel_axis = Constant <value_ints = [1]> ()\n{text}"


def _parts(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    precision = str(attributes.get("precision", "fp32"))
    return (
        *(("nhwc",) if attributes.get("layout") == "nhwc" else ()),
        *((precision,) if precision in ("int8", "shift") else ()),
    )


def _body(variant: frozenset[str], opset: int) -> str:
    split = "Split <axis = 1>" if opset < 18 else "Split <axis = 1, num_outputs = 3>"
    gates = "".join(_GATE.replace("TOKEN", token) for token in "qk")
    body = _BODY.replace("SPLIT3", split).replace("GATES", gates)
    if "nhwc" in variant:
        first, last = "Transpose <perm = [0, 3, 1, 2]>", "Transpose <perm = [0, 2, 3, 1]>"
    else:
        first = last = "Identity"
    return f"image = {first} (x)\n{_rounded(variant, opset)}\n{body}\ny = {last} (result)"


MIXER = Operator(
    "AdditiveTokenMixer",
    ("x", "qkv_weight", "qkv_bias", *_GATES, "dwc_weight", "dwc_bias", "proj_weight", "proj_bias"),
    (),
    {"channels": "int", "precision": "string", "layout": "string"},
    _parts,
    _body,
)
