// What the registrations of every device share: checks, layouts, pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

namespace s3h::stable {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The type of the vectors: biases, lse, upstream gradient.
inline ScalarType compute_type(const Tensor& queries) {
  const ScalarType type = queries.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                      type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "queries must be float32, float64, bfloat16 or float16");
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor
                                      : torch::stable::to(tensor, type);
}

// The tensor as contiguous `type`; the same tensor where it already is. The
// dispatcher picks a kernel by any one argument; pointers need all of them.
inline Tensor as_contiguous(
    const Tensor& tensor, ScalarType type,
    const Device& device = Device(torch::headeronly::DeviceType::CPU)) {
  STD_TORCH_CHECK(tensor.device() == device,
                  "every tensor must be on the same device");
  return torch::stable::contiguous(as_type(tensor, type));
}

// The shape as [2, 3], for errors.
inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d)
    text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  return text + "]";
}

inline OptionalTensor vector_of(const OptionalTensor& tensor, int64_t size,
                                ScalarType type, const Device& device,
                                const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == size, name,
                  " must have ", size, " elements, got shape ",
                  shape_of(*tensor));
  return as_contiguous(*tensor, type, device);
}

inline OptionalTensor vector_of(const OptionalTensor& tensor, int64_t size,
                                ScalarType type, const char* name) {
  return vector_of(tensor, size, type,
                   Device(torch::headeronly::DeviceType::CPU), name);
}

// Elements by their own type, for the stable ABI knows no type of ours.
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

// Where to write; what is not asked for is not calculated.
inline void* target(const Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

}  // namespace s3h::stable
