#include "operators.h"

namespace vitlet::ort {

const Definition operators[] = {
    {"AdditiveTokenMixer", "fffffffffffffff", make_additive_token_mixer},
    {"BinaryLinearAttention", "fffFFF", make_binary_linear_attention},
    {"DepthwiseConv2d", "ffFF", make_depthwise_conv2d},
    {"Int8Linear", "fifFF", make_int8_linear},
    {"Linear", "ffFF", make_linear},
    {"ShiftLinear", "fufFF", make_shift_linear},
    {nullptr, nullptr, nullptr},
};

}  // namespace vitlet::ort
