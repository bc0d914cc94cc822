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
  // The nearest of `count` rows, the first of equals. `scale` is 1 / |feature|
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

extern const PrototypeRows<float> kPrototypeRowsBaseline;
extern const PrototypeRows<double> kPrototypeRowsBaselineDouble;
#if defined(S3H_X86_LEVELS)
extern const PrototypeRows<float> kPrototypeRowsAvx2;
extern const PrototypeRows<double> kPrototypeRowsAvx2Double;
extern const PrototypeRows<float> kPrototypeRowsAvx512;
extern const PrototypeRows<double> kPrototypeRowsAvx512Double;
#endif

}  // namespace s3h::cpu
