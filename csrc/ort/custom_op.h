#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ort_abi.h"

// What a kernel of this library sees of ONNX Runtime. Errors are exceptions here and become an
// OrtStatus at the boundary; none leaves the library.
namespace vitlet::ort {

// A float32 tensor that ONNX Runtime owns; contiguous.
struct Tensor {
  const float* data;
  std::vector<std::int64_t> shape;
};

// A node while its kernel is made.
class Info {
 public:
  Info(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  // A string attribute; `fallback` if the node has none.
  std::string text(const char* attribute, const std::string& fallback) const;
  // An input that is a constant of the graph; nothing if it is computed.
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
  float* output(std::size_t index, const std::vector<std::int64_t>& shape) const;

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

// An operator of the domain ai.vitlet: `inputs` float32 tensors in, one out.
struct Definition {
  const char* name;
  std::size_t inputs;
  std::unique_ptr<Kernel> (*create)(const Info& info, int threads);
};

// Every operator of this library, ended by one without a name; see operators.cpp.
extern const Definition operators[];

// Throws std::invalid_argument("[op] expected ..., got ...").
[[noreturn]] void refuse(const char* op, const std::string& expected, const std::string& got);
std::string show(const std::vector<std::int64_t>& shape);

}  // namespace vitlet::ort
