#include "operators.h"

namespace vitlet::ort {

const Definition operators[] = {
    {"AdditiveTokenMixer", 15, make_additive_token_mixer},
    {nullptr, 0, nullptr},
};

}  // namespace vitlet::ort
