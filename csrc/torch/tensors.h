// Shared by the registrations of all devices: checks, layouts, pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <initializer_list>
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

// A shape as text for errors, such as [2, 3].
template <typename Sizes>
std::string shape_of(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes)
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

inline std::string shape_of(const Tensor& tensor) {
  return shape_of(tensor.sizes());
}

inline int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:
      return 1;
  }
}

// Returns the result of `make`, a tensor of `sizes` on the device of `like`.
// Through the stable ABI of PyTorch 2.11, an error only says that a call
// failed. Programs that look for out-of-memory errors (to halve the batch) need
// PyTorch's own words, so this throws them.
template <typename Sizes, typename Make>
Tensor allocate(const Tensor& like, const Sizes& sizes, ScalarType type,
                const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    double bytes = static_cast<double>(bytes_of(type));
    for (const int64_t size : sizes) bytes *= static_cast<double>(size);
    STD_TORCH_CHECK(
        false,
        like.device().type() == torch::headeronly::DeviceType::CPU
            ? "DefaultCPUAllocator: can't allocate memory: you tried"
            : "CUDA out of memory. Tried",
        " to allocate ", bytes, " bytes for a tensor of ", shape_of(sizes));
    throw;
  }
}

inline Tensor new_empty(const Tensor& like,
                        std::initializer_list<int64_t> sizes, ScalarType type) {
  return allocate(like, sizes, type,
                  [&] { return torch::stable::new_empty(like, sizes, type); });
}

inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type
             ? tensor
             : allocate(tensor, tensor.sizes(), type,
                        [&] { return torch::stable::to(tensor, type); });
}

// The tensor as contiguous `type`; the same tensor if it already is. The
// dispatcher picks a kernel by any one argument; pointers need all of them.
inline Tensor as_contiguous(
    const Tensor& tensor, ScalarType type,
    const Device& device = Device(torch::headeronly::DeviceType::CPU)) {
  STD_TORCH_CHECK(tensor.device() == device,
                  "every tensor must be on the same device");
  const Tensor typed = as_type(tensor, type);
  if (typed.is_contiguous()) return typed;
  return allocate(typed, typed.sizes(), type,
                  [&] { return torch::stable::contiguous(typed); });
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

// Elements in our own types, which the stable ABI does not know.
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

// Scores that a forward keeps for its backward; nullptr for an empty tensor.
inline float* scores_of(const Tensor& scores) {
  return scores.numel() == 0 ? nullptr : mutable_data<float>(scores);
}

// Where to write the result; nullptr if it is not wanted.
inline void* target(const Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

}  // namespace s3h::stable
