#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "bindings.h"

namespace vitlet {

Isa choose_isa(const std::string& name) {
  if (name.empty()) return active_isa();
  const Isa isa = isa_from_name(name);
  if (!isa_supported(isa)) throw std::invalid_argument("[isa] this CPU lacks " + name);
  return isa;
}

}  // namespace vitlet

PYBIND11_MODULE(_C, m) {
  m.doc() = "vitlet's compiled kernels; use vitlet.ops, which checks shapes and dispatches.";
  vitlet::active_isa();  // a wrong VITLET_ISA fails here, at import, and not in the first kernel
  m.def("active_isa", [] { return vitlet::isa_name(vitlet::active_isa()); });
  m.def("supported_isas", [] {
    std::vector<std::string> names;
    for (vitlet::Isa isa : vitlet::all_isas)
      if (vitlet::isa_supported(isa)) names.push_back(vitlet::isa_name(isa));
    return names;
  });
  vitlet::bind_binary_linear_attention(m);
  vitlet::bind_additive_token_mixer(m);
  vitlet::bind_depthwise_conv2d(m);
  vitlet::bind_float_linear(m);
  vitlet::bind_hamming_attention(m);
  vitlet::bind_resize_normalize(m);
  vitlet::bind_shift_linear(m);
}
