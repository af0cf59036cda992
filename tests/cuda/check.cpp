// Runs the GPU kernels on the processor and compares them with the references. Prints one line and
// returns 0, or names the first difference and returns 1. `check few` takes fewer sizes.
#include "check.h"

#include <cstdio>
#include <cstring>

int main(int count, char** arguments) {
  const bool few = count > 1 && std::strcmp(arguments[1], "few") == 0;
  const std::size_t checks[] = {check_linear(few), check_attention(few), check_mixer(few)};
  for (const std::size_t passed : checks)
    if (passed == 0) return 1;
  std::printf("ok %zu + %zu + %zu checks\n", checks[0], checks[1], checks[2]);
  return 0;
}
