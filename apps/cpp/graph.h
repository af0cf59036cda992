// A graph that `vitlet export --to tvm` compiled, run by TVM's runtime alone.
#pragma once
#include <dlfcn.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

class Graph {
 public:
  Graph(const std::string& path, int threads)
      : library_(tvm::ffi::Module::LoadFromFile(path)),
        machine_(library_->GetFunction("vm_load_executable").value()().cast<tvm::ffi::Module>()) {
    // TVM would take half the processors at most, and pin this thread to the first one.
    setenv("TVM_NUM_THREADS", std::to_string(threads).c_str(), 1);
    setenv("TVM_BIND_THREADS", "0", 0);
    const int big_cores_first = 1, cpu = 1, pooled_allocator = 2;
    tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool")(big_cores_first, threads);
    machine_->GetFunction("vm_initialization").value()(cpu, 0, pooled_allocator);
    find_weights(path);
  }

  // Takes the one input, float32, and returns the one output's numbers.
  std::vector<float> run(const std::vector<float>& values, const std::vector<int64_t>& shape) {
    tvm::ffi::Tensor input = tvm::ffi::Tensor::FromNDAlloc(
        Aligned{}, tvm::ffi::Shape(shape), DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
    if (input.numel() != static_cast<int64_t>(values.size()))
      throw std::runtime_error("the graph takes another number of values");
    std::memcpy(input.data_ptr(), values.data(), values.size() * sizeof(float));
    std::vector<tvm::ffi::Any> arguments{input};
    arguments.insert(arguments.end(), weights_.begin(), weights_.end());
    std::vector<tvm::ffi::AnyView> views(arguments.begin(), arguments.end());
    tvm::ffi::Any result;
    machine_->GetFunction("main").value().CallPacked(
        tvm::ffi::PackedArgs(views.data(), static_cast<int32_t>(views.size())), &result);
    const auto output = result.cast<tvm::ffi::Tensor>();
    const auto* from = static_cast<const float*>(output.data_ptr());
    return {from, from + output.numel()};
  }

 private:
  struct Aligned {  // TVM loads vectors from addresses that are multiples of 64
    void AllocData(DLTensor* tensor) {
      tensor->data = std::aligned_alloc(64, (tvm::ffi::GetDataSize(*tensor) + 63) / 64 * 64);
      if (tensor->data == nullptr) throw std::bad_alloc();
    }
    void FreeData(DLTensor* tensor) { std::free(tensor->data); }
  };
  struct Mapped {  // part of the library, which stays open as long as the graph
    char* data;
    void AllocData(DLTensor* tensor) { tensor->data = data; }
    void FreeData(DLTensor*) {}
  };

  // The function takes the weights after its input; they are used where they lie in the library.
  // python/vitlet/runtime/tvm_weights.py describes the index.
  void find_weights(const std::string& path) {
    void* handle = dlopen(path.c_str(), RTLD_NOW);
    auto* begin = static_cast<char*>(dlsym(handle, "vitlet_weights"));
    auto* index = static_cast<const int64_t*>(dlsym(handle, "vitlet_weights_index"));
    for (int64_t left = begin && index ? *index++ : 0; left > 0; --left) {
      const int64_t offset = index[0], kind = index[1], bits = index[2], dimensions = index[3];
      index += 4;
      weights_.push_back(tvm::ffi::Tensor::FromNDAlloc(
          Mapped{begin + offset}, tvm::ffi::Shape(index, index + dimensions),
          DLDataType{static_cast<uint8_t>(kind), static_cast<uint8_t>(bits), 1}, {kDLCPU, 0}));
      index += dimensions;
    }
    if (handle != nullptr) dlclose(handle);
  }

  tvm::ffi::Module library_, machine_;
  std::vector<tvm::ffi::Tensor> weights_;
};
