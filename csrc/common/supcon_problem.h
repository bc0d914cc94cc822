// What a supervised contrastive loss is asked for; the pointers are the
// device's own, row-major and contiguous.
#pragma once

#include <cstdint>

namespace s3h {

enum class Reduction { kNone, kMean, kSum };

// T is the type of the vectors, Element that of the features; void where a
// kernel is told them in another way.
template <typename T, typename Element = T>
struct SupConProblem {
  const Element* features;  // [n, depth]
  const int64_t* labels;    // [n]; negative, or from `classes` on: no class
  int64_t n;
  int64_t depth;
  int64_t classes;  // negative: no bound
  double temperature;
  Reduction reduction;
  bool deterministic;  // the same bits on every run, for any number of threads
};

}  // namespace s3h
