// Runs a compiled graph on a board, or in an emulator, with TVM's runtime alone:
//   runner GRAPH.so INPUT OUTPUT SIZE...
// INPUT holds float32 numbers of the given sizes; OUTPUT receives those of the one output.
#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <numeric>

#include "graph.h"

int main(int count, char** arguments) {
  if (count < 5 || !dlopen("libtvm_runtime.so", RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "usage: %s GRAPH INPUT OUTPUT SIZE...\n", arguments[0]);
    return 1;
  }
  std::vector<int64_t> sizes;
  for (int i = 4; i < count; ++i) sizes.push_back(std::atoll(arguments[i]));
  std::vector<float> input(
      std::accumulate(sizes.begin(), sizes.end(), std::size_t{1}, std::multiplies<std::size_t>()));
  std::ifstream(arguments[2], std::ios::binary)
      .read(reinterpret_cast<char*>(input.data()), input.size() * sizeof(float));
  const std::vector<float> output = Graph(arguments[1], 1).run(input, sizes);
  std::ofstream(arguments[3], std::ios::binary)
      .write(reinterpret_cast<const char*>(output.data()), output.size() * sizeof(float));
  return 0;
}
