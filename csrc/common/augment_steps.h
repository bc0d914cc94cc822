// The operations of augmentation and the ranges of their arguments, for host
// and device.
#pragma once

#include <cstdint>

#include "philox.h"

namespace s3h {

// The numbers match s3h_ext.ops.augment.Operation.
enum class Operation : int64_t {
  kNone = 0,
  kShearX,       // coefficient, nearest
  kShearY,       // coefficient, nearest
  kShearXCubic,  // coefficient, bicubic
  kShearYCubic,  // coefficient, bicubic
  kTranslateX,   // pixels, nearest
  kTranslateY,   // pixels, nearest
  kRotate,       // degrees, counter-clockwise, nearest
  kAutoContrast,
  kInvert,
  kEqualize,
  kPosterize,    // bits kept, 0 .. 8
  kSolarize,     // values from this one on are inverted
  kColour,       // factor, 1: unchanged
  kContrast,     // factor, 1: unchanged
  kBrightness,   // factor, 1: unchanged
  kSharpness,    // factor, 1: unchanged
  kSolarizeAdd,  // added to values below 128
  kBlur,         // standard deviation in pixels, 0 .. 64
  kCount
};

// Larger magnitudes, coordinates and image sides are rejected, so that no sum
// of them overflows an int64.
constexpr int64_t kLargest = int64_t{1} << 20;

S3H_COMMON bool is_operation(int64_t number) {
  return number >= 0 && number < static_cast<int64_t>(Operation::kCount);
}

S3H_COMMON bool is_coordinate(int64_t value) {
  return value >= -kLargest && value <= kLargest;
}

// False for NaN.
S3H_COMMON bool is_magnitude(double value) {
  constexpr auto kMost = static_cast<double>(kLargest);
  return value >= -kMost && value <= kMost;
}

S3H_COMMON bool is_bits(double value) {
  return value >= 0 && value <= 8 &&
         static_cast<double>(static_cast<int64_t>(value)) == value;
}

S3H_COMMON bool is_deviation(double value) { return value >= 0 && value <= 64; }

}  // namespace s3h
