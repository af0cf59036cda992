#include "cpu.h"

#include <cstdlib>
#include <iterator>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace vitlet {

#if defined(__x86_64__)

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avxvnni:
      return isa_supported(Isa::avx2) && __builtin_cpu_supports("avxvnni");
    case Isa::avx512:
      return isa_supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::avx512vnni:
      return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("avx512vbmi");
    case Isa::avx512bf16:
      return isa_supported(Isa::avx512vnni) && __builtin_cpu_supports("avx512bf16");
  }
  return false;
}

std::string isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::avx512bf16:
      return "avx512bf16";
    default:
      return "baseline";
  }
}

#elif defined(__aarch64__)

bool isa_supported(Isa isa) {
#if defined(__linux__)
  // Bits of the kernel's AT_HWCAP and AT_HWCAP2, which old headers lack.
  constexpr unsigned long hwcap_asimddp = 1ul << 20, hwcap2_i8mm = 1ul << 13;
  const bool dot = (getauxval(AT_HWCAP) & hwcap_asimddp) != 0;
  if (isa == Isa::dotprod) return dot;
  if (isa == Isa::i8mm) return dot && (getauxval(AT_HWCAP2) & hwcap2_i8mm) != 0;
#elif defined(__APPLE__)
  if (isa == Isa::dotprod) return true;  // every Apple processor for macOS has it; i8mm came later
#endif
  return isa == Isa::baseline;
}

std::string isa_name(Isa isa) {
  switch (isa) {
    case Isa::dotprod:
      return "dotprod";
    case Isa::i8mm:
      return "i8mm";
    default:
      return "baseline";
  }
}

#else

bool isa_supported(Isa isa) { return isa == Isa::baseline; }
std::string isa_name(Isa) { return "baseline"; }

#endif

Isa isa_from_name(const std::string& name) {
  std::string known;
  for (Isa isa : all_isas) {
    if (isa_name(isa) == name) return isa;
    if (isa != Isa::baseline) known += isa == all_isas[std::size(all_isas) - 1] ? " or " : ", ";
    known += isa_name(isa);
  }
  throw std::invalid_argument("[isa] expected " + known + ", got \"" + name + "\"");
}

Isa active_isa() {
  static const Isa isa = [] {
    Isa limit = all_isas[std::size(all_isas) - 1];
    if (const char* name = std::getenv("VITLET_ISA")) {
      try {
        limit = isa_from_name(name);
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string("environment variable VITLET_ISA: ") +
                                    error.what());
      }
    }
    Isa best = Isa::baseline;
    for (Isa candidate : all_isas)
      if (candidate <= limit && isa_supported(candidate)) best = candidate;
    return best;
  }();
  return isa;
}

}  // namespace vitlet
