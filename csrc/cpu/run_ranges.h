// Runs the work of loss and prototype kernels on threads.
#pragma once

#include "flush_denormals.h"
#include "threads.h"

namespace s3h::cpu {

// Calls `body` on sub-ranges that cover [0, count), all on the calling thread
// if `serial`. Denormals are flushed to zero: each operation on one takes about
// a hundred cycles, and neither losses nor gradients need them.
inline void run_ranges(const Threads& threads, int64_t count, bool serial,
                       const RangeFunction& body) {
  const RangeFunction flushed = [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    body(begin, end);
  };
  if (serial)
    flushed(0, count);
  else
    threads.parallel_for(0, count, flushed);
}

}  // namespace s3h::cpu
