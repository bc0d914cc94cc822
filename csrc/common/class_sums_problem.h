// The arguments of dot products with class sums; pointers are to the device's
// own memory, row-major and contiguous.
#pragma once

#include <cstdint>

namespace s3h {

// T is the type of the matrices; void if a kernel gets it in another way.
template <typename T>
struct ClassSumProblem {
  bool symmetric;    // keys and key_classes are not read; m == n
  const T* queries;  // [n, depth]
  const T* keys;     // [m, depth]
  int64_t n;
  int64_t m;
  int64_t depth;
  const int64_t* query_classes;  // [n]
  const int64_t* key_classes;    // [m]
  int64_t classes;
};

}  // namespace s3h
