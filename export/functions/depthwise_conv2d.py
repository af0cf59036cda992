"""`DepthwiseConv2d`: one filter a channel, for images with the channels last.

x is (B, H, W, C), the weight (C, 1, kh, kw), and y = activation(conv(x) + bias) + residual.
"""

from __future__ import annotations

from vitlet.export.functions.operator import Operator, activation_part, epilogue


def _body(variant: frozenset[str], opset: int) -> str:
    return f"""
        image = Transpose <perm = [0, 3, 1, 2]> (x)
        filtered = Conv <group: int = @channels, strides: ints = @strides, pads: ints = @pads>
            (image, weight)
        product = Transpose <perm = [0, 2, 3, 1]> (filtered)
        {epilogue("product", variant, opset)}"""


DEPTHWISE_CONV2D = Operator(
    "DepthwiseConv2d",
    ("x", "weight"),
    ("bias", "residual"),
    {"activation": "string", "channels": "int", "pads": "ints", "strides": "ints"},
    activation_part,
    _body,
)
