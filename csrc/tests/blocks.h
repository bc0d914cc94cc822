// Inputs of the native tests: heap blocks of the exact size, so that a
// sanitizer sees a read past the end, and elements of every type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "../cpu/bfloat16.h"

template <typename T>
std::unique_ptr<T[]> exact(const std::vector<T>& from) {
  std::unique_ptr<T[]> to(new T[from.size()]);
  std::copy(from.begin(), from.end(), to.get());
  return to;
}

template <typename Element>
void set(Element& to, float value) {
  if constexpr (std::is_same_v<Element, s3h::cpu::Bfloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to = static_cast<s3h::cpu::Bfloat16>(bits >> 16);
  } else {
    to = value;
  }
}

template <typename Element>
double get(Element from) {
  if constexpr (std::is_same_v<Element, s3h::cpu::Bfloat16>) {
    const uint32_t bits = static_cast<uint32_t>(from) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    return from;
  }
}
