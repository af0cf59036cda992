"""The compiled kernels as checked functions over numpy arrays."""

from vitlet.ops.additive_token_mixer import MixerWeights, additive_token_mixer
from vitlet.ops.binary_linear_attention import PackedBits, binary_linear_attention, pack_bits
from vitlet.ops.depthwise_conv2d import (
    DepthwiseWeight,
    depthwise_conv2d,
    pack_depthwise_weight,
)
from vitlet.ops.hamming_attention import hamming_attention
from vitlet.ops.linear import LinearWeight, linear, pack_linear_weight
from vitlet.ops.resize_normalize import resize_crop, resize_normalize
from vitlet.ops.shift_linear import (
    Int8Weight,
    ShiftWeight,
    int8_linear,
    pack_int8_weight,
    pack_shift_weight,
    shift_linear,
)

__all__ = [
    "DepthwiseWeight",
    "Int8Weight",
    "LinearWeight",
    "MixerWeights",
    "PackedBits",
    "ShiftWeight",
    "additive_token_mixer",
    "binary_linear_attention",
    "depthwise_conv2d",
    "hamming_attention",
    "int8_linear",
    "linear",
    "pack_bits",
    "pack_depthwise_weight",
    "pack_int8_weight",
    "pack_linear_weight",
    "pack_shift_weight",
    "resize_crop",
    "resize_normalize",
    "shift_linear",
]
