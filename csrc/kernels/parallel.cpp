#include "parallel.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <new>

#if defined(__linux__)
#include <sched.h>
#endif

namespace vitlet {
namespace {

// One call of parallel_for, on its caller's stack. All but `unfinished` belongs to the pool's
// mutex.
struct Job {
  void (*body)(void*, std::size_t, std::size_t);
  void* context;
  std::size_t count, ranges;
  std::size_t next;                     // the first range nobody has taken
  std::atomic<std::size_t> unfinished;  // ranges
  Job* older;
};

struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t work = PTHREAD_COND_INITIALIZER;  // a job came
  pthread_cond_t done = PTHREAD_COND_INITIALIZER;  // a job's last range is done
  Job* newest = nullptr;                           // jobs with ranges that nobody has taken
  std::atomic<bool> open{false};                   // newest != nullptr
  int workers = 0;
};

// Never destroyed: workers sleep in it until the process ends.
Pool& pool() {
  alignas(Pool) static unsigned char storage[sizeof(Pool)];
  static Pool* const made = [] {
    // The child has none of the workers, and one of them may have held the mutex.
    pthread_atfork(nullptr, nullptr, [] { new (storage) Pool; });
    return new (storage) Pool;
  }();
  return *made;
}

// Some microseconds: less than falling asleep and being woken up takes.
template <typename Condition>
void spin_until(Condition condition) {
  for (int i = 0; i < 200 && !condition(); ++i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }
}

// Takes the next range of `job` and does it. The mutex is held before and after.
void do_range(Pool& p, Job& job) {
  const std::size_t i = job.next++;
  if (job.next == job.ranges) {
    Job** link = &p.newest;
    while (*link != &job) link = &(*link)->older;
    *link = job.older;
    p.open.store(p.newest != nullptr, std::memory_order_relaxed);
  }
  pthread_mutex_unlock(&p.mutex);
  // The first count % ranges ranges are one longer.
  const std::size_t length = job.count / job.ranges, longer = job.count % job.ranges;
  const std::size_t begin = i * length + (i < longer ? i : longer);
  job.body(job.context, begin, begin + length + (i < longer ? 1 : 0));
  pthread_mutex_lock(&p.mutex);
  if (job.unfinished.fetch_sub(1, std::memory_order_release) == 1) pthread_cond_broadcast(&p.done);
}

void* work(void* argument) {
  Pool& p = *static_cast<Pool*>(argument);
  pthread_mutex_lock(&p.mutex);
  for (;;) {
    if (p.newest == nullptr) {
      pthread_mutex_unlock(&p.mutex);
      spin_until([&] { return p.open.load(std::memory_order_relaxed); });
      pthread_mutex_lock(&p.mutex);
    }
    while (p.newest == nullptr) pthread_cond_wait(&p.work, &p.mutex);
    do_range(p, *p.newest);
  }
  return nullptr;
}

// Starts workers until there are `wanted`, or as many as there is a use for. The mutex is held.
void start_workers(Pool& p, int wanted) {
  if (p.workers >= wanted) return;
  const int most = usable_processors() - 1;
  if (wanted > most) wanted = most;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigset_t all, before;  // signals are for the application's threads
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  while (p.workers < wanted && pthread_create(&thread, &attributes, work, &p) == 0) ++p.workers;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
}

}  // namespace

int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count < 1 ? 1 : static_cast<int>(count);
}

void parallel_for(std::size_t count, int threads,
                  void (*body)(void* context, std::size_t begin, std::size_t end), void* context) {
  if (count == 0) return;
  if (threads <= 1 || count == 1) {
    body(context, 0, count);
    return;
  }
  const std::size_t ranges =
      count < static_cast<std::size_t>(threads) ? count : static_cast<std::size_t>(threads);
  Pool& p = pool();
  Job job{body, context, count, ranges, 0, {ranges}, nullptr};
  pthread_mutex_lock(&p.mutex);
  start_workers(p, static_cast<int>(ranges) - 1);
  job.older = p.newest;
  p.newest = &job;
  p.open.store(true, std::memory_order_relaxed);
  for (std::size_t i = 1; i < ranges; ++i) pthread_cond_signal(&p.work);
  while (job.next < ranges) do_range(p, job);
  if (job.unfinished.load(std::memory_order_acquire) != 0) {
    pthread_mutex_unlock(&p.mutex);
    spin_until([&] { return job.unfinished.load(std::memory_order_acquire) == 0; });
    pthread_mutex_lock(&p.mutex);
    while (job.unfinished.load(std::memory_order_acquire) != 0)
      pthread_cond_wait(&p.done, &p.mutex);
  }
  pthread_mutex_unlock(&p.mutex);
}

}  // namespace vitlet
