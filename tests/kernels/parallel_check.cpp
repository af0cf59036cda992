// Holds parallel_for to its contract: every index once, from many threads, nested, and after fork.
// Prints "ok" and returns 0, or says what is wrong and returns 1. Built and run by
// test_parallel.py.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "parallel.h"

namespace {

using vitlet::parallel_for;

bool every_index_once(std::size_t count, int threads) {
  struct Context {
    std::vector<int> seen;
    std::atomic<int> ranges{0};
  } context{std::vector<int>(count), {}};
  parallel_for(
      count, threads,
      [](void* p, std::size_t begin, std::size_t end) {
        auto& c = *static_cast<Context*>(p);
        ++c.ranges;
        for (std::size_t i = begin; i < end; ++i) ++c.seen[i];
      },
      &context);
  for (int seen : context.seen)
    if (seen != 1) return false;
  return context.ranges <= (threads < 1 ? 1 : threads);
}

bool nested() {
  std::atomic<int> sum{0};
  parallel_for(
      7, 4,
      [](void* p, std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i)
          parallel_for(
              5, 3,
              [](void* q, std::size_t from, std::size_t to) {
                *static_cast<std::atomic<int>*>(q) += static_cast<int>(to - from);
              },
              p);
      },
      &sum);
  return sum == 35;
}

bool from_many_threads() {
  std::atomic<bool> good{true};
  std::vector<std::thread> callers;
  for (int t = 0; t < 8; ++t)
    callers.emplace_back([&good, t] {
      for (std::size_t i = 0; i < 300; ++i)
        if (!every_index_once(i % 37, 1 + t % 5)) good = false;
    });
  for (auto& caller : callers) caller.join();
  return good;
}

// With two processors, two ranges that each wait for the other end only if both run at once.
bool at_the_same_time() {
  if (vitlet::usable_processors() < 2) return true;
  struct Context {
    std::atomic<int> arrived{0};
    std::atomic<bool> met{true};
  } context;
  parallel_for(
      2, 2,
      [](void* p, std::size_t, std::size_t) {
        auto& c = *static_cast<Context*>(p);
        ++c.arrived;
        const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (c.arrived != 2)
          if (std::chrono::steady_clock::now() > limit) {
            c.met = false;
            return;
          }
      },
      &context);
  return context.met;
}

// Forks while other threads keep the pool busy, so that its mutex may be held at that moment.
bool after_fork() {
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int t = 0; t < 2; ++t)
    busy.emplace_back([&stop] {
      while (!stop) every_index_once(64, 4);
    });
  bool good = true;
  for (int i = 0; i < 50 && good; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      _exit(every_index_once(1000, 4) && at_the_same_time() ? 0 : 1);
    }
    int status = 1;
    good = child > 0 && waitpid(child, &status, 0) == child && status == 0;
  }
  stop = true;
  for (auto& thread : busy) thread.join();
  return good && every_index_once(1000, 4);
}

}  // namespace

int main(int count, char** arguments) {
  const bool forks = count < 2 || std::strcmp(arguments[1], "nofork") != 0;
  for (std::size_t n : {0, 1, 2, 3, 7, 16, 97, 1000})
    for (int threads : {-1, 0, 1, 2, 3, 8, 1000})
      if (!every_index_once(n, threads)) {
        std::printf("%zu indices over %d threads: not every one once\n", n, threads);
        return 1;
      }
  const struct {
    const char* what;
    bool good;
  } checks[] = {{"nested calls", nested()},
                {"calls from many threads", from_many_threads()},
                {"two ranges at the same time", at_the_same_time()},
                {"calls after fork", !forks || after_fork()}};
  for (const auto& check : checks)
    if (!check.good) {
      std::printf("wrong: %s\n", check.what);
      return 1;
    }
  std::puts("ok");
  return 0;
}
