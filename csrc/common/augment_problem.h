// The arguments of an augmentation; pointers are to the device's own memory.
#pragma once

#include <cstdint>

namespace s3h {

struct AugmentProblem {
  const uint8_t* images;  // [n, height, width, channels]
  int64_t n;
  int64_t height;
  int64_t width;
  int64_t channels;           // 1 or 3
  int64_t views;              // M
  int64_t steps;              // K
  const int64_t* operations;  // [M, K]
  const double* magnitudes;   // [M, K]
  const int64_t* source;      // [M], in [0, n)
  const int64_t* corners;     // [M, 2] top, left of the crop, or nullptr
  const bool* flips;          // [M] or nullptr
  const int64_t* holes;       // [M, 4] top, left, height, width, or nullptr
  uint8_t fill;               // value of pixels from outside the image
};

}  // namespace s3h
