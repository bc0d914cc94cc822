// Batch norm by the statistics of the batch, an optional residual and ReLU, in
// one operation: out = max(0, (x - mean) / sqrt(var + eps) * weight + bias +
// residual), with a mean and a variance for each channel.
#pragma once

#include <cstdint>

#include "threads.h"

namespace s3h::cpu {

struct BatchNormProblem {
  int64_t rows;  // N H W, over all images
  int64_t channels;
  const float* weight;
  const float* bias;
  double eps;
};

// Maps are [rows, channels], i.e. channels-last. `residual` may be null.
// Writes the biased variance. Element is float or Bfloat16.
template <typename Element>
void batch_norm_relu(const BatchNormProblem& p, const Threads& threads,
                     const Element* x, const Element* residual, Element* out,
                     float* mean, float* variance);

// `grad_residual` is null if there was no residual.
template <typename Element>
void batch_norm_relu_backward(const BatchNormProblem& p, const Threads& threads,
                              const Element* grad, const Element* out,
                              const Element* x, const float* mean,
                              const float* variance, Element* grad_x,
                              float* grad_weight, float* grad_bias,
                              Element* grad_residual);

}  // namespace s3h::cpu
