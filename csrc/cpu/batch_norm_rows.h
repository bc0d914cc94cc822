// The inner loops of csrc/cpu/batch_norm.cpp, one table of them per
// instruction set.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace s3h::cpu {

// The loops read and write whole vectors of per-channel values: these arrays
// must hold a multiple of this many numbers.
constexpr int64_t kChannelPadding = 16;

// A range of rows, each of `channels` elements.
template <typename Element>
struct BatchNormRows {
  // middle: the mean of a few rows from all over. Sums the distances from it
  // and their squares, so that a mean far from zero costs no precision.
  void (*moments)(const Element* x, int64_t rows, int64_t channels,
                  float* middle, float* sum, float* squares);
  // out = max(0, (x - mean) scale + bias + residual); residual may be null
  void (*normalise)(const Element* x, const Element* residual, int64_t rows,
                    int64_t channels, const float* mean, const float* scale,
                    const float* bias, Element* out);
  // Sums of g, which is grad where out > 0 and 0 elsewhere, and of
  // g (x - mean). Writes g to `masked` unless that is null.
  void (*sums)(const Element* grad, const Element* out, const Element* x,
               int64_t rows, int64_t channels, const float* mean, float* sum,
               float* product, Element* masked);
  // to = scale (g - centre - (x - mean) slope); g is grad if out is null
  void (*gradient)(const Element* grad, const Element* out, const Element* x,
                   int64_t rows, int64_t channels, const float* mean,
                   const float* scale, const float* centre, const float* slope,
                   Element* to);
};

#define S3H_DECLARE(level)                                 \
  namespace level {                                        \
  extern const BatchNormRows<float> kBatchNormFloat;       \
  extern const BatchNormRows<Bfloat16> kBatchNormBfloat16; \
  }
S3H_DECLARE(baseline)
#if defined(S3H_X86_LEVELS)
S3H_DECLARE(avx2)
S3H_DECLARE(avx512)
S3H_DECLARE(avx512_bf16)
#endif
#undef S3H_DECLARE

}  // namespace s3h::cpu
