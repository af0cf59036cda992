#include "scratch.h"

#include <new>

namespace vitlet {
namespace {

constexpr std::size_t most_kept = std::size_t{16} << 20;
constexpr std::align_val_t alignment{64};

struct Kept {
  void* data = nullptr;
  std::size_t size = 0;
  bool in_use = false;
  ~Kept() { ::operator delete(data, alignment); }
};

Kept& of_this_thread() {
  thread_local Kept kept;
  return kept;
}

}  // namespace

Scratch::Scratch(std::size_t bytes) : data_(nullptr), kept_(bytes <= most_kept) {
  Kept& kept = of_this_thread();
  if (kept.in_use) kept_ = false;
  if (!kept_) {
    data_ = ::operator new(bytes, alignment);
    return;
  }
  if (bytes > kept.size) {
    void* larger = ::operator new(bytes, alignment);
    ::operator delete(kept.data, alignment);
    kept.data = larger;
    kept.size = bytes;
  }
  kept.in_use = true;
  data_ = kept.data;
}

Scratch::~Scratch() {
  if (kept_)
    of_this_thread().in_use = false;
  else
    ::operator delete(data_, alignment);
}

}  // namespace vitlet
