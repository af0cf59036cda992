"""`AdditiveTokenMixer`: CAS-ViT's token mixer (https://arxiv.org/abs/2408.03703) in one call."""

from __future__ import annotations

from vitlet.export.functions.operator import Operator

_GATES = ("q_conv_weight", "q_conv_bias", "q_point_weight", "q_pool_weight",
          "k_conv_weight", "k_conv_bias", "k_point_weight", "k_pool_weight")  # fmt: skip

# SPLIT3 is spelled as the opset wants it.
_BODY = """
    qkv = Conv (image, qkv_weight, qkv_bias)
    q, k, v = SPLIT3 (qkv)

    q_conv = Conv <pads = [1, 1, 1, 1], group: int = @channels> (q, q_conv_weight, q_conv_bias)
    q_relu = Relu (q_conv)
    q_point = Conv (q_relu, q_point_weight)
    q_gate = Sigmoid (q_point)
    q_gated = Mul (q, q_gate)
    q_mean = GlobalAveragePool (q_gated)
    q_pool = Conv (q_mean, q_pool_weight)
    q_weights = Sigmoid (q_pool)
    q_out = Mul (q_gated, q_weights)

    k_conv = Conv <pads = [1, 1, 1, 1], group: int = @channels> (k, k_conv_weight, k_conv_bias)
    k_relu = Relu (k_conv)
    k_point = Conv (k_relu, k_point_weight)
    k_gate = Sigmoid (k_point)
    k_gated = Mul (k, k_gate)
    k_mean = GlobalAveragePool (k_gated)
    k_pool = Conv (k_mean, k_pool_weight)
    k_weights = Sigmoid (k_pool)
    k_out = Mul (k_gated, k_weights)

    sum = Add (q_out, k_out)
    context = Conv <pads = [1, 1, 1, 1], group: int = @channels> (sum, dwc_weight, dwc_bias)
    mixed = Mul (context, v)
    result = Conv <pads = [1, 1, 1, 1], group: int = @channels> (mixed, proj_weight, proj_bias)
"""


def _body(variant: frozenset[str], opset: int) -> str:
    split = "Split <axis = 1>" if opset < 18 else "Split <axis = 1, num_outputs = 3>"
    body = _BODY.replace("SPLIT3", split)
    if "nhwc" in variant:
        first, last = "Transpose <perm = [0, 3, 1, 2]>", "Transpose <perm = [0, 2, 3, 1]>"
    else:
        first = last = "Identity"
    return f"image = {first} (x)\n{body}\ny = {last} (result)"


MIXER = Operator(
    "AdditiveTokenMixer",
    ("x", "qkv_weight", "qkv_bias", *_GATES, "dwc_weight", "dwc_bias", "proj_weight", "proj_bias"),
    (),
    {"channels": "int", "precision": "string", "layout": "string"},
    lambda attributes: ("nhwc",) if attributes.get("layout") == "nhwc" else (),
    _body,
)
