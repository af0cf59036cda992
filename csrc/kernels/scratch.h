#pragma once
#include <cstddef>

namespace vitlet {

// Memory for one call of a kernel, 64-byte aligned: for those that call kernels, which allocate
// nothing themselves. The thread keeps up to 16 MiB for its next call, for fresh pages from the
// system cost more than many a kernel.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return data_; }

 private:
  void* data_;
  bool kept_;
};

}  // namespace vitlet
