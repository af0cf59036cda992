// Runs the GPU kernels on the processor and compares them with the references. Prints a line for
// each op and returns 0, or names the first difference and returns 1.
//   check [few] [linear | attention | mixer]    few: fewer sizes
#include "check.h"

#include <cstdio>
#include <string>

int main(int count, char** arguments) {
  const struct {
    const char* name;
    std::size_t (*check)(bool);
  } ops[] = {{"linear", check_linear}, {"attention", check_attention}, {"mixer", check_mixer}};
  bool few = false;
  std::string only;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "few")
      few = true;
    else
      only = argument;
  }
  for (const auto& op : ops) {
    if (!only.empty() && only != op.name) continue;
    const std::size_t passed = op.check(few);
    if (passed == 0) return 1;
    std::printf("ok %s %zu checks\n", op.name, passed);
  }
  return 0;
}
