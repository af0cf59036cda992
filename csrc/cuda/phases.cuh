#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// One source for a GPU and, for tests without one, for a processor.
//
// A kernel is a plain structure: its arguments, `threads` of a block (a multiple of 32), what a
// block shares (Shared), what a thread keeps from phase to phase (Registers), and the work of one
// block cut into phases:
//
//   template <typename Run>
//   VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
//     run.phase([&](int thread, Registers& r) { ... });
//     run.phase([&](int thread, Registers& r) { ... });
//   }
//
// All threads of the block end a phase before one begins the next; in a phase no thread touches
// what another writes. After a warp_phase only the 32 threads of a warp wait for each other. What
// stands between phases must be the same for all threads. GpuRun below is what nvcc compiles;
// tests/cuda/host_runner.h has the processor's, with a thread for each warp.

#ifdef __CUDACC__
#define VITLET_DEVICE __device__ __forceinline__
#define VITLET_ON_DEVICE __host__ __device__  // for csrc/kernels/gelu.h
#define VITLET_UNROLL _Pragma("unroll")
#define VITLET_KEEP_ROLLED _Pragma("unroll 1")
#else
#define VITLET_DEVICE inline
#define VITLET_UNROLL
#define VITLET_KEEP_ROLLED
#endif

// Now that VITLET_ON_DEVICE is known.
#include "gelu.h"

namespace vitlet::cuda {

constexpr int warp = 32;

struct alignas(16) Four {
  float v[4];
};

struct alignas(16) FourWords {
  std::uint32_t v[4];
};

// The operands of one 16 x 8 x 32 product of signed bytes as the lanes of a warp hold them. Of
// lane l, with g = l / 4 and t = l % 4:
//   a[0..3]: rows g, g + 8, g, g + 8; inputs 4 t .. 4 t + 3, for a[2] and a[3] 16 more
//   b[0..1]: column g; inputs 4 t .. 4 t + 3, for b[1] 16 more
//   c[0..3]: rows g, g, g + 8, g + 8; columns 2 t, 2 t + 1, 2 t, 2 t + 1
struct ByteProduct {
  std::int32_t* c;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// Nearest, ties to even.
VITLET_DEVICE int round_to_int(float value) {
#ifdef __CUDA_ARCH__
  return __float2int_rn(value);
#else
  return static_cast<int>(std::nearbyint(value));
#endif
}

// Byte i of the result is byte (selector >> 4 i & 7) of high : low.
VITLET_DEVICE std::uint32_t choose_bytes(std::uint32_t low, std::uint32_t high,
                                         std::uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const std::uint64_t from = std::uint64_t{high} << 32 | low;
  std::uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i)
    bytes |= static_cast<std::uint32_t>(from >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return bytes;
#endif
}

VITLET_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Whether rows of `stride` numbers from `p` on all begin where a Four may.
inline bool rows_are_aligned(const void* p, std::size_t stride) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}

// Four numbers from `p`, those from `count` on 0. whole: 16-byte aligned, count is a multiple of 4.
VITLET_DEVICE Four load_four(const float* p, int count, bool whole) {
  if (whole && count >= 4) return *reinterpret_cast<const Four*>(p);
  Four four;
  VITLET_UNROLL
  for (int i = 0; i < 4; ++i) four.v[i] = i < count ? p[i] : 0.0f;
  return four;
}

VITLET_DEVICE void store_four(float* p, const Four& four, int count, bool whole) {
  if (whole && count >= 4) {
    *reinterpret_cast<Four*>(p) = four;
    return;
  }
  VITLET_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < count) p[i] = four.v[i];
}

VITLET_DEVICE void add(Four& sum, const Four& other) {
  VITLET_UNROLL
  for (int i = 0; i < 4; ++i) sum.v[i] += other.v[i];
}

#ifdef __CUDACC__

// c += a * b for the whole warp. Before sm_80 there is only the 8 x 8 x 16 product, whose operands
// lie in the same lanes: four of them.
VITLET_DEVICE void multiply_bytes(const ByteProduct& p) {
  std::int32_t* c = p.c;
  const std::uint32_t *a = p.a, *b = p.b;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  VITLET_UNROLL
  for (int i = 0; i < 4; ++i)
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
        : "r"(a[i]), "r"(b[i / 2]));
#endif
}

template <typename Registers>
struct GpuRun {
  int thread;
  Registers& registers;

  template <typename Phase>
  VITLET_DEVICE void phase(const Phase& work) {
    work(thread, registers);
    __syncthreads();
  }
  template <typename Phase>
  VITLET_DEVICE void warp_phase(const Phase& work) {
    work(thread, registers);
    __syncwarp();
  }
  // operands(registers) -> ByteProduct.
  template <typename Operands>
  VITLET_DEVICE void multiply(const Operands& operands) {
    multiply_bytes(operands(registers));
  }
  // number(registers) -> float&: every lane gets the warp's largest, or the sum.
  template <typename Number>
  VITLET_DEVICE void warp_max(const Number& number) {
    float& value = number(registers);
    VITLET_UNROLL
    for (int step = warp / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, value, step);
      value = other > value ? other : value;
    }
  }
  template <typename Number>
  VITLET_DEVICE void warp_sum(const Number& number) {
    float& value = number(registers);
    VITLET_UNROLL
    for (int step = warp / 2; step > 0; step /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, step);
  }
};

// Blocks that a multiprocessor's registers must have room for: Kernel::resident, if it is there.
template <typename Kernel, typename = void>
struct Resident {
  static constexpr int blocks = 1;
};
template <typename Kernel>
struct Resident<Kernel, decltype(void(Kernel::resident))> {
  static constexpr int blocks = Kernel::resident;
};

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::threads, Resident<Kernel>::blocks)
    run_kernel(const __grid_constant__ Kernel k) {
  __shared__ typename Kernel::Shared shared;
  typename Kernel::Registers registers;
  GpuRun<typename Kernel::Registers> run{static_cast<int>(threadIdx.x), registers};
  k.body(run, blockIdx.x, shared);
}

// What a plan calls for each of its kernels: puts it on the stream and remembers the first error.
struct Launch {
  cudaStream_t stream;
  cudaError_t status = cudaSuccess;

  template <typename Kernel>
  void operator()(const Kernel& kernel, std::size_t blocks) {
    if (status != cudaSuccess || blocks == 0) return;
    if (blocks > 0x7fffffff) {
      status = cudaErrorInvalidConfiguration;
      return;
    }
    run_kernel<<<static_cast<unsigned>(blocks), Kernel::threads, 0, stream>>>(kernel);
    status = cudaGetLastError();
  }
};

#endif  // __CUDACC__

}  // namespace vitlet::cuda
