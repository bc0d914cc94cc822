// The inner loops of csrc/cpu/prototypes.cpp, one table of them per
// instruction set.
#pragma once

#include <cstdint>

namespace s3h::cpu {

template <typename T>
struct Nearest {
  int64_t row;  // -1: no distance is finite
  T distance;
};

template <typename T>
struct PrototypeRows {
  // The nearest of `count` rows, the first in a tie. `scale` is 1 / |feature|
  // for the cosine distance 1 - scale feature . row, and negative for the
  // squared Euclidean one.
  Nearest<T> (*nearest)(const T* feature, T scale, const T* rows,
                        const T* masses, int64_t count, int64_t depth);
  T (*squares)(const T* x, int64_t depth);
  // to += scale x
  void (*add)(const T* x, T scale, int64_t depth, T* to);
  // sum = momentum sum + batch
  void (*decay)(const T* batch, T momentum, int64_t depth, T* sum);
  // to = scale x
  void (*scale)(const T* x, T scale, int64_t depth, T* to);
};

namespace baseline {
extern const PrototypeRows<float> kFloatRows;
extern const PrototypeRows<double> kDoubleRows;
}  // namespace baseline
#if defined(S3H_X86_LEVELS)
namespace avx2 {
extern const PrototypeRows<float> kFloatRows;
extern const PrototypeRows<double> kDoubleRows;
}  // namespace avx2
namespace avx512 {
extern const PrototypeRows<float> kFloatRows;
extern const PrototypeRows<double> kDoubleRows;
}  // namespace avx512
#endif

}  // namespace s3h::cpu
