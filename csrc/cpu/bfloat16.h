// Bfloat16, held as its bits, and conversions, which do nothing for other
// types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace s3h::cpu {

enum class Bfloat16 : uint16_t {};

inline float to_float(float x) { return x; }

inline double to_float(double x) { return x; }

inline float to_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void from_float(float value, float& to) { to = value; }

// Rounds to nearest, ties to even.
inline void from_float(float value, Bfloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded =
      std::isnan(value) ? 0x7fc00000u : bits + 0x7fff + ((bits >> 16) & 1);
  to = static_cast<Bfloat16>(rounded >> 16);
}

}  // namespace s3h::cpu
