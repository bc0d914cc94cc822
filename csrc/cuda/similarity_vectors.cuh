// The vectors of a tile's rows and columns: labels, biases, log-sum-exps.
#pragma once

#include <cstdint>

#include "products.cuh"
#include "similarity_arguments.h"
#include "similarity_log.cuh"

namespace s3h::cuda {

constexpr float kInfinity = __builtin_huge_valf();

template <int kCount>
struct Vectors {
  int64_t labels[kCount];
  int64_t self[kCount];
  float bias[kCount];
  float same[kCount];
  float lse[kCount];
  float correction[kCount];
  float grad[kCount];
  float weight[kCount];  // these four as in Role
  float weight_same[kCount];
  float factor[kCount];
  int label[kCount];
  int exponent[kCount];      // of RowScales
  float unused[2 * kCount];  // a power of two: addresses are cheap
};

// One row or column of it.
struct Entry {
  int64_t label, self;
  float bias, same, lse, grad;
};

template <bool kPlain, int kCount>
__device__ inline Entry entry_of(const Vectors<kCount>& vectors, int i) {
  if constexpr (kPlain)
    return {-1, -1, 0.f, 0.f, vectors.lse[i], vectors.grad[i]};
  return {vectors.labels[i], vectors.self[i], vectors.bias[i],
          vectors.same[i],   vectors.lse[i],  vectors.grad[i]};
}

// The same where all numbers are bounded. With p = e^(dot / temperature), a
// pair's part of its query's sum, or of the gradient through that, is
//   p weight_query factor_key, or p weight_same_query factor_key
// where their labels are equal; factor = e^bias, weight = g e^-lse in the
// backward and 1 in the forward, weight_same = weight e^same.
struct Role {
  int label;  // one without a label has none's equal
  float weight, weight_same, factor;

  __device__ float asks(bool same, const Role& key) const {
    return (same ? weight_same : weight) * key.factor;
  }
};

template <int kCount>
__device__ inline Role role_of(const Vectors<kCount>& vectors, int i) {
  return {vectors.label[i], vectors.weight[i], vectors.weight_same[i],
          vectors.factor[i]};
}

template <bool kPlain, int kCount>
__device__ inline void load_vectors(Vectors<kCount>& to, const Side& side,
                                    int64_t first) {
  static_assert(kCount <= kThreads);
  const int i = thread_x();
  if (i >= kCount) return;
  const int64_t from = first + i;
  const bool there = from < side.matrix.count;
  const int64_t at = there ? from : 0;
  if constexpr (!kPlain) {
    if (side.labels) copy_async<8>(&to.labels[i], side.labels + at, there);
    if (side.self) copy_async<8>(&to.self[i], side.self + at, there);
    if (side.bias) copy_async<4>(&to.bias[i], side.bias + at, there);
    if (side.same) copy_async<4>(&to.same[i], side.same + at, there);
  }
  if (side.grad) {
    copy_async<4>(&to.lse[i], side.lse + at, there);
    copy_async<4>(&to.correction[i], side.correction + at, there);
    copy_async<4>(&to.grad[i], side.grad + at, there);
  }
}

// e^x. y is rounded by up to 2^-24 |y|, which float32 is given back.
template <typename Type>
__device__ inline float exp_of(float x) {
  const float y = product_of(x, kLog2e), power = exp2_fast(y);
  if constexpr (!Tile<Type>::kExact) return power;
  const float rest = fused(x, kLog2eRest, fused(x, kLog2e, -y));
  return magnitude(y) < 126.f ? fused(power * rest, kLn2, power) : power;
}

// Of vectors that no Role holds: ends in a sum that is out of bounds.
constexpr float kNaN = __builtin_nanf("");

__device__ inline bool label_bounded(int64_t label) {
  return label <= 0x7fffffff;
}

// Biases that leave e^x e^bias e^-lse numbers; NaN of others.
__device__ inline bool bias_bounded(float bias) {
  return magnitude(bias) <= kMostBias || bias == -kInfinity;
}
template <typename Type>
__device__ inline float factor_of(float bias) {
  if (bias == -kInfinity) return 0.f;
  return bias_bounded(bias) ? exp_of<Type>(bias) : kNaN;
}

// What a thread makes of its own copies when they are there: for bounded
// numbers Roles, else neutral values where there is no vector. `otherwise`: the
// weight of a side without a gradient; `no_label`: below zero, another one for
// rows than for columns.
template <typename Type, bool kPlain, int kCount>
__device__ inline void finish_vectors(Vectors<kCount>& vectors,
                                      const Side& side, const ScoreArguments& a,
                                      bool bounded, float otherwise,
                                      int no_label) {
  const int i = thread_x();
  if (i >= kCount) return;
  float weight = otherwise;
  if (side.grad) {
    const float grad = vectors.grad[i] * vectors.correction[i];
    vectors.grad[i] = grad;
    if (bounded) weight = exp_of<Type>(-vectors.lse[i]) * grad;
  } else if (!bounded) {
    vectors.lse[i] = vectors.grad[i] = 0.f;
  }
  if (bounded) vectors.weight[i] = weight;
  if constexpr (kPlain) return;
  const bool label = side.labels && vectors.labels[i] >= 0;
  const float same = side.same ? vectors.same[i] : a.same_value;
  if (bounded) {
    vectors.label[i] = label ? static_cast<int>(vectors.labels[i]) : no_label;
    vectors.factor[i] = side.bias ? factor_of<Type>(vectors.bias[i]) : 1.f;
    vectors.weight_same[i] =
        label && weight != 0.f ? weight * factor_of<Type>(same) : 0.f;
    if (label && !label_bounded(vectors.labels[i]))
      vectors.weight[i] = vectors.factor[i] = kNaN;
  } else {
    if (!label) vectors.labels[i] = no_label;
    vectors.same[i] = same;
    if (!side.self) vectors.self[i] = -1;
    if (!side.bias) vectors.bias[i] = 0.f;
  }
}

}  // namespace s3h::cuda
