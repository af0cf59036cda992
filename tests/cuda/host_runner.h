#pragma once
// Runs a kernel of csrc/cuda on the processor: block after block, a thread for each warp, and in a
// warp lane after lane. A barrier that is missing is a data race for ThreadSanitizer; what lanes
// of one warp hand each other without one changes with `backwards`. Shared memory and registers
// begin as NaNs, each in an allocation of its own for AddressSanitizer.
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "phases.cuh"

namespace vitlet::cuda {

class Barrier {
 public:
  explicit Barrier(int count) : count_(count), waiting_(count) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::size_t round = round_;
    if (--waiting_ == 0) {
      waiting_ = count_;
      ++round_;
      all_.notify_all();
      return;
    }
    all_.wait(lock, [&] { return round_ != round; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  const int count_;
  int waiting_;
  std::size_t round_ = 0;
};

template <typename Registers>
class HostRun {
 public:
  HostRun(int first_thread, bool backwards, Barrier& barrier)
      : first_(first_thread), backwards_(backwards), barrier_(barrier), lanes_(warp) {}

  void begin() { std::memset(static_cast<void*>(lanes_.data()), 0xff, sizeof(Registers) * warp); }

  template <typename Phase>
  void phase(const Phase& work) {
    warp_phase(work);
    barrier_.wait();
  }
  template <typename Phase>
  void warp_phase(const Phase& work) {
    for (int i = 0; i < warp; ++i) {
      const int lane = backwards_ ? warp - 1 - i : i;
      work(first_ + lane, lanes_[lane]);
    }
  }
  template <typename Operands>
  void multiply(const Operands& operands) {
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        std::int32_t sum = 0;
        for (int k = 0; k < 32; ++k) {
          const ByteProduct a = operands(lanes_[row % 8 * 4 + k % 16 / 4]);
          const ByteProduct b = operands(lanes_[column * 4 + k % 16 / 4]);
          sum += byte(a.a[row / 8 + k / 16 * 2], k % 4) * byte(b.b[k / 16], k % 4);
        }
        operands(lanes_[row % 8 * 4 + column / 2]).c[row / 8 * 2 + column % 2] += sum;
      }
  }
  template <typename Number>
  void warp_max(const Number& number) {
    float most = number(lanes_[0]);
    for (auto& lane : lanes_) most = number(lane) > most ? number(lane) : most;
    for (auto& lane : lanes_) number(lane) = most;
  }
  template <typename Number>
  void warp_sum(const Number& number) {
    for (int step = warp / 2; step > 0; step /= 2) {
      float before[warp];
      for (int i = 0; i < warp; ++i) before[i] = number(lanes_[i]);
      for (int i = 0; i < warp; ++i) number(lanes_[i]) = before[i] + before[i ^ step];
    }
  }

 private:
  static int byte(std::uint32_t word, int i) { return static_cast<std::int8_t>(word >> 8 * i); }

  int first_;
  bool backwards_;
  Barrier& barrier_;
  std::vector<Registers> lanes_;
};

// What a plan calls for each of its kernels.
struct HostLaunch {
  bool backwards;

  template <typename Kernel>
  void operator()(const Kernel& kernel, std::size_t blocks) {
    static_assert(Kernel::threads % warp == 0 && Kernel::threads <= 1024);
    static_assert(sizeof(typename Kernel::Shared) <= 48 * 1024, "what every GPU has");
    const std::unique_ptr<typename Kernel::Shared> shared(new typename Kernel::Shared);
    constexpr int warps = Kernel::threads / warp;
    Barrier barrier(warps);
    std::vector<std::thread> threads;
    for (int w = 0; w < warps; ++w)
      threads.emplace_back([&, w] {
        HostRun<typename Kernel::Registers> run(w * warp, backwards, barrier);
        for (std::size_t i = 0; i < blocks; ++i) {
          barrier.wait();
          if (w == 0) std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));
          barrier.wait();
          run.begin();
          kernel.body(run, backwards ? blocks - 1 - i : i, *shared);
        }
      });
    for (auto& thread : threads) thread.join();
  }
};

}  // namespace vitlet::cuda
