#pragma once
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "ort_abi.h"

// What a kernel of this library sees of ONNX Runtime. Errors are exceptions here and become an
// OrtStatus at the boundary; none leaves the library.
namespace vitlet::ort {

using Shape = std::vector<std::int64_t>;

// A tensor that ONNX Runtime owns, contiguous, of the type its operator declares.
struct Tensor {
  const void* data = nullptr;  // null too for an input that is absent
  Shape shape;
  const float* floats() const { return static_cast<const float*>(data); }
};

// A node while its kernel is made.
class Info {
 public:
  Info(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  // An attribute; `fallback` if the node has none.
  std::string text(const char* attribute, const std::string& fallback) const;
  std::int64_t integer(const char* attribute, std::int64_t fallback) const;
  std::vector<std::int64_t> integers(const char* attribute,
                                     std::vector<std::int64_t> fallback) const;
  // An input that is a constant of the graph; nothing if it is computed or absent.
  std::optional<Tensor> constant(std::size_t index) const;

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

// A node while it runs.
class Context {
 public:
  Context(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}
  Tensor input(std::size_t index) const;
  float* output(std::size_t index, const Shape& shape) const;

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
};

// One node's kernel. `compute` may be called by several threads at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Context& context) const = 0;
};

// An operator of the domain ai.vitlet: one float32 tensor out.
struct Definition {
  const char* name;
  const char* inputs;  // a letter each: f float32, i int8, u uint8; F float32 that may be absent
  std::unique_ptr<Kernel> (*create)(const Info& info, int threads);
};

// Every operator of this library, ended by one without a name; see operators.cpp.
extern const Definition operators[];

struct Release {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<void, Release>;  // 64-byte aligned
Buffer allocate(std::size_t bytes);

// The product of the sizes from axis `first` up to `last`, not included.
std::size_t count(const Shape& shape, std::size_t first, std::size_t last);

// Throws std::invalid_argument("[op] expected ..., got ...").
[[noreturn]] void refuse(const char* op, const std::string& expected, const std::string& got);
std::string show(const Shape& shape);

}  // namespace vitlet::ort
