#pragma once
#include <cstddef>

namespace vitlet {

// Cuts [0, count) into at most `threads` ranges of nearly equal length and calls
// body(context, begin, end) for each, some at the same time. Returns when all are done.
//
// The caller works too, and one pool of sleeping threads, started when first needed and shared by
// all callers, helps: never more of them than processors this process may use, however many callers
// there are. While they are busy elsewhere the caller does all ranges itself, so it waits for
// nothing but its own work, and body may call parallel_for. threads <= 1 means: in this thread.
//
// May be called from any number of threads. A forked child starts a pool of its own; body must not
// fork. body must not throw.
void parallel_for(std::size_t count, int threads,
                  void (*body)(void* context, std::size_t begin, std::size_t end), void* context);

// Processors that this process may use, at least 1.
int usable_processors();

}  // namespace vitlet
