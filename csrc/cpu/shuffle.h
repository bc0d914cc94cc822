// A shuffle of two vectors, under each compiler's name for it. Included by
// files that are compiled once per instruction set, hence the internal linkage.
#pragma once

namespace s3h::cpu {
namespace {

// Elements Index... of x and y concatenated. gcc before 12 has only this name.
template <int... Index, typename Vector>
inline __attribute__((always_inline)) Vector shuffle(Vector x, Vector y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, Index...);
#else
  using Mask = decltype(x < y);
  return __builtin_shuffle(x, y, Mask{Index...});
#endif
}

}  // namespace
}  // namespace s3h::cpu
