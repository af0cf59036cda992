// Runs a compiled graph on a board, or in an emulator, with TVM's runtime alone:
//   runner GRAPH.so INPUT OUTPUT SIZE...
// INPUT holds float32 numbers of the given sizes; OUTPUT receives those of the one output.
#include <dlfcn.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

namespace ffi = tvm::ffi;

struct Aligned {
  void AllocData(DLTensor* tensor) {
    const size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

int main(int count, char** arguments) {
  if (count < 5 || !dlopen("libtvm_runtime.so", RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "usage: %s GRAPH INPUT OUTPUT SIZE...\n", arguments[0]);
    return 1;
  }
  std::vector<int64_t> sizes;
  for (int i = 4; i < count; ++i) sizes.push_back(std::atoll(arguments[i]));
  ffi::Tensor input = ffi::Tensor::FromNDAlloc(Aligned{}, ffi::Shape(sizes),
                                               DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
  std::ifstream(arguments[2], std::ios::binary)
      .read(static_cast<char*>(input.data_ptr()), ffi::GetDataSize(*input.GetDLTensorPtr()));

  ffi::Module library = ffi::Module::LoadFromFile(arguments[1]);
  ffi::Module machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  const int cpu = 1, pooled_allocator = 2;
  machine->GetFunction("vm_initialization").value()(cpu, 0, pooled_allocator);
  ffi::Tensor output = machine->GetFunction("main").value()(input).cast<ffi::Tensor>();
  std::ofstream(arguments[3], std::ios::binary)
      .write(static_cast<char*>(output.data_ptr()), ffi::GetDataSize(*output.GetDLTensorPtr()));
  return 0;
}
