#pragma once
#include "cpu.h"

// Declares the per-instruction-set copies of a kernel and defines `name_table`, indexed by Isa. A
// row that a kernel has not is filled by the next lower one.
//
// VITLET_KERNEL_TABLE: for kernels built by vitlet_add_kernel(NAME), with the rows baseline, avx2
// and avx512 (on aarch64: baseline).
// VITLET_BF16_KERNEL_TABLE: for vitlet_add_kernel(NAME BF16), which adds avx512bf16.
// VITLET_INT8_KERNEL_TABLE: for vitlet_add_kernel(NAME INT8), which adds avxvnni and avx512vnni (on
// aarch64: dotprod and i8mm).
// VITLET_INT8_BF16_KERNEL_TABLE: for vitlet_add_kernel(NAME INT8 BF16), with every row.
#define VITLET_DECLARE_KERNEL(isa, name, signature) \
  namespace isa {                                   \
  signature name;                                   \
  }

#if defined(__x86_64__)
#define VITLET_KERNEL_TABLE(name, signature)                                          \
  VITLET_DECLARE_KERNEL(baseline, name, signature)                                    \
  VITLET_DECLARE_KERNEL(avx2, name, signature)                                        \
  VITLET_DECLARE_KERNEL(avx512, name, signature)                                      \
  static signature* const name##_table[] = {baseline::name, avx2::name,   avx2::name, \
                                            avx512::name,   avx512::name, avx512::name};
#define VITLET_BF16_KERNEL_TABLE(name, signature)                                     \
  VITLET_DECLARE_KERNEL(baseline, name, signature)                                    \
  VITLET_DECLARE_KERNEL(avx2, name, signature)                                        \
  VITLET_DECLARE_KERNEL(avx512, name, signature)                                      \
  VITLET_DECLARE_KERNEL(avx512bf16, name, signature)                                  \
  static signature* const name##_table[] = {baseline::name, avx2::name,   avx2::name, \
                                            avx512::name,   avx512::name, avx512bf16::name};
#define VITLET_INT8_KERNEL_TABLE(name, signature)                                            \
  VITLET_DECLARE_KERNEL(baseline, name, signature)                                           \
  VITLET_DECLARE_KERNEL(avx2, name, signature)                                               \
  VITLET_DECLARE_KERNEL(avxvnni, name, signature)                                            \
  VITLET_DECLARE_KERNEL(avx512, name, signature)                                             \
  VITLET_DECLARE_KERNEL(avx512vnni, name, signature)                                         \
  static signature* const name##_table[] = {baseline::name, avx2::name,       avxvnni::name, \
                                            avx512::name,   avx512vnni::name, avx512vnni::name};
#define VITLET_INT8_BF16_KERNEL_TABLE(name, signature)                                       \
  VITLET_DECLARE_KERNEL(baseline, name, signature)                                           \
  VITLET_DECLARE_KERNEL(avx2, name, signature)                                               \
  VITLET_DECLARE_KERNEL(avxvnni, name, signature)                                            \
  VITLET_DECLARE_KERNEL(avx512, name, signature)                                             \
  VITLET_DECLARE_KERNEL(avx512vnni, name, signature)                                         \
  VITLET_DECLARE_KERNEL(avx512bf16, name, signature)                                         \
  static signature* const name##_table[] = {baseline::name, avx2::name,       avxvnni::name, \
                                            avx512::name,   avx512vnni::name, avx512bf16::name};
#elif defined(__aarch64__)
#define VITLET_KERNEL_TABLE(name, signature)       \
  VITLET_DECLARE_KERNEL(baseline, name, signature) \
  static signature* const name##_table[] = {baseline::name, baseline::name, baseline::name};
#define VITLET_INT8_KERNEL_TABLE(name, signature)  \
  VITLET_DECLARE_KERNEL(baseline, name, signature) \
  VITLET_DECLARE_KERNEL(dotprod, name, signature)  \
  VITLET_DECLARE_KERNEL(i8mm, name, signature)     \
  static signature* const name##_table[] = {baseline::name, dotprod::name, i8mm::name};
#else
#define VITLET_KERNEL_TABLE(name, signature)                                                \
  VITLET_DECLARE_KERNEL(baseline, name, signature)                                          \
  static signature* const name##_table[] = {baseline::name, baseline::name, baseline::name, \
                                            baseline::name, baseline::name, baseline::name};
#define VITLET_INT8_KERNEL_TABLE(name, signature) VITLET_KERNEL_TABLE(name, signature)
#endif
#if !defined(__x86_64__)
#define VITLET_BF16_KERNEL_TABLE(name, signature) VITLET_KERNEL_TABLE(name, signature)
#define VITLET_INT8_BF16_KERNEL_TABLE(name, signature) VITLET_INT8_KERNEL_TABLE(name, signature)
#endif
