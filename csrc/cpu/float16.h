// Float16, held as its bits, and its conversion.
#pragma once

#include <cstdint>
#include <cstring>

namespace s3h::cpu {

enum class Float16 : uint16_t {};

inline float to_float(Float16 x) {
  const auto from_bits = [](uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  const uint32_t bits = static_cast<uint32_t>(x);
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  // Subnormals get an exponent whose leading bit is subtracted again: they must
  // not pass through denormals, which are flushed to zero here.
  const float value = magnitude < (1u << 23)
                          ? from_bits(magnitude + (113u << 23)) - 0x1p-14f
                          : from_bits(magnitude + (112u << 23));
  const float special = from_bits(magnitude | 0x7f800000u);
  uint32_t result;
  const float chosen = (bits & 0x7c00u) == 0x7c00u ? special : value;
  std::memcpy(&result, &chosen, sizeof result);
  return from_bits(result | sign);
}

}  // namespace s3h::cpu
