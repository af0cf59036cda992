#pragma once
#include <string>

namespace vitlet {

// Instruction sets a kernel may be compiled for, slowest first. x86-64: avxvnni is AVX2 with 8-bit
// dot products; avx512vnni has those at 512 bits (Ice Lake on), avx512bf16 also bfloat16 ones (Zen
// 4, Sapphire Rapids on). aarch64: NEON is the baseline, and the other rows add its dot products
// and 8-bit matrix products. A kernel need not have every row: a missing one is filled by the next
// lower that it has (see dispatch.h).
#if defined(__aarch64__)
enum class Isa { baseline, dotprod, i8mm };
inline constexpr Isa all_isas[] = {Isa::baseline, Isa::dotprod, Isa::i8mm};
#else
enum class Isa { baseline, avx2, avxvnni, avx512, avx512vnni, avx512bf16 };
inline constexpr Isa all_isas[] = {Isa::baseline, Isa::avx2,       Isa::avxvnni,
                                   Isa::avx512,   Isa::avx512vnni, Isa::avx512bf16};
#endif

// The best instruction set of this CPU, lowered by the environment variable VITLET_ISA (one of the
// names above). Read once, at first use.
// Throws std::invalid_argument if VITLET_ISA names no instruction set.
Isa active_isa();

// Every instruction set this CPU can run, for tests that check each against the reference.
bool isa_supported(Isa isa);

std::string isa_name(Isa isa);
Isa isa_from_name(const std::string& name);

}  // namespace vitlet
