// From sums of exponentials to their logarithms. Where scores are large, a
// float does not know by how much one of them is below its row's log-sum-exp.
// So it comes with a correction between 1 / keys and keys, the sum that the
// rounded logarithm stands for over the true one: a score's part of the sum is
// e^(x - lse) times that.
#pragma once

#include "device.cuh"

namespace s3h::cuda {

// A sum of e^x without a shift that has all its digits: no term that counts was
// too small or too large for a float, where the sum is below `most` and above
// 1 / most. kMostSum is for e^(q . k / temperature), kMostBiasedSum for those
// times factors from e^-kMostBias to e^kMostBias, one of the key and one of
// the label. Log: the logarithms.
constexpr float kMostSum = 0x1p64f, kMostBiasedSum = 0x1p40f;
constexpr float kMostLog = 44.36142f, kMostBiasedLog = 27.725887f;
constexpr float kMostBias = 15.f;

__device__ inline bool in_bounds(float sum, float most) {
  return sum < most && sum > 1 / most;
}

// The logarithm of `sum` e^top; -inf of an empty one.
__device__ inline void write_logarithm(float* lse, float* correction, float top,
                                       float sum) {
  const double exact = top + log_of(static_cast<double>(sum));
  const float value = static_cast<float>(exact);
  const bool finite = magnitude(value) < __builtin_huge_valf();
  *lse = sum == 0.f ? -__builtin_huge_valf() : value;
  *correction = finite ? static_cast<float>(exp_of(value - exact)) : 1.f;
}

}  // namespace s3h::cuda
