// What the registrations share: checks, layouts, pointers, threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "../cpu/similarity.h"

namespace s3h::stable {

using cpu::Threads;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Threads torch_threads() {
  const int64_t count = torch::stable::get_num_threads();
  return {count,
          [count](int64_t begin, int64_t end, const cpu::RangeFunction& body) {
            const int64_t grain = std::max<int64_t>(
                1, (end - begin + count - 1) / std::max<int64_t>(1, count));
            torch::stable::parallel_for(begin, end, grain, body);
          }};
}

// The type of the vectors: biases, lse, upstream gradient.
inline ScalarType compute_type(const Tensor& queries) {
  const ScalarType type = queries.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                      type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "queries must be float32, float64, bfloat16 or float16");
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensor as contiguous `type`; the same tensor where it already is.
inline Tensor as_contiguous(const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.is_cpu(), "every tensor must be on the CPU");
  return torch::stable::contiguous(
      tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

inline OptionalTensor vector_of(const OptionalTensor& tensor, int64_t size,
                                ScalarType type, const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == size, name,
                  " must have ", size, " elements");
  return as_contiguous(*tensor, type);
}

// Elements by their own type, for the stable ABI knows no cpu::Bfloat16.
template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
const T* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

}  // namespace s3h::stable
