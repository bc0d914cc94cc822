// How callers pass threads to the kernels.
#pragma once

#include <cstdint>
#include <functional>

namespace s3h::cpu {

using RangeFunction = std::function<void(int64_t begin, int64_t end)>;

// parallel_for calls `body` on sub-ranges that cover [begin, end).
struct Threads {
  int64_t count;
  std::function<void(int64_t begin, int64_t end, const RangeFunction& body)>
      parallel_for;
};

}  // namespace s3h::cpu
