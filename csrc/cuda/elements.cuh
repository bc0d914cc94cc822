// Element types of row matrices, and how a thread reads and writes several
// elements at once. Arithmetic is in Real: float, double for double.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.cuh"
#include "scalar.h"

namespace s3h::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float widen(BFloat16 x) {
  return bits_to_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline float widen(Float16 x) { return unpack_fp16(x.bits); }
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

template <typename T>
__device__ inline T narrow(RealOf<T> x) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return {static_cast<uint16_t>(pack_bf16(x, 0.f) & 0xffffu)};
  else if constexpr (std::is_same_v<T, Float16>)
    return {static_cast<uint16_t>(pack_fp16(x, 0.f) & 0xffffu)};
  else
    return x;
}

// kWidth neighbours, which start at a multiple of their size or of 16 bytes.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Several {
  T at[kWidth];
};

template <int kWidth, typename T>
__device__ inline Several<T, kWidth> load_several(const T* from) {
  return *reinterpret_cast<const Several<T, kWidth>*>(from);
}

template <typename T, int kWidth>
__device__ inline void store_several(T* to, const Several<T, kWidth>& values) {
  *reinterpret_cast<Several<T, kWidth>*>(to) = values;
}

inline bool aligned_to(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline size_t element_size(Scalar type) {
  return type == Scalar::kFloat64 ? 8 : type == Scalar::kFloat32 ? 4 : 2;
}
inline Scalar real_type(Scalar type) {
  return type == Scalar::kFloat64 ? type : Scalar::kFloat32;
}
inline size_t real_size(Scalar type) { return element_size(real_type(type)); }

// Calls function.template operator()<T>() for the type's T.
template <typename Function>
auto with_element(Scalar type, const Function& function) {
  switch (type) {
    case Scalar::kBFloat16:
      return function.template operator()<BFloat16>();
    case Scalar::kFloat16:
      return function.template operator()<Float16>();
    case Scalar::kFloat64:
      return function.template operator()<double>();
    default:
      return function.template operator()<float>();
  }
}

// The next multiple of what a workspace's parts are aligned to.
inline size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

inline int64_t ceil_divide(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

}  // namespace s3h::cuda
