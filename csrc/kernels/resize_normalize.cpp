#include "resize_normalize.h"

#include "dispatch.h"

namespace vitlet {

using NormalizeKernel = void(const std::uint8_t*, const ResizePlan&, const float*, const float*,
                             float*);
using CropKernel = void(const std::uint8_t*, const ResizePlan&, std::uint8_t*);
VITLET_KERNEL_TABLE(resize_normalize, NormalizeKernel)
VITLET_KERNEL_TABLE(resize_crop, CropKernel)

void resize_normalize(const std::uint8_t* image, const ResizeRequest& request, const float* mean,
                      const float* std, float* out, void* workspace, Isa isa) {
  resize_normalize_table[static_cast<int>(isa)](image, make_plan(request, workspace), mean, std,
                                                out);
}

void resize_crop(const std::uint8_t* image, const ResizeRequest& request, std::uint8_t* out,
                 void* workspace, Isa isa) {
  resize_crop_table[static_cast<int>(isa)](image, make_plan(request, workspace), out);
}

}  // namespace vitlet
