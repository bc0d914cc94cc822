// Augmentation of small uint8 images, operation by operation as Pillow does it:
//
//   view = cut a hole( op_K( ... op_1( flip( crop( image ) ) ) ) )
//
// Every operation rounds to uint8, so lists of them give what the same calls of
// ImageOps, ImageEnhance and Image.transform give. The arithmetic is in
// csrc/common/augment_tones.h and augment_maps.h, which the GPU uses too.
#pragma once

#include <cstdint>

#include "../common/augment_steps.h"
#include "similarity.h"

namespace s3h::cpu {

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
  uint8_t fill;               // of pixels that geometry brings in from outside
};

// out: [M, height, width, channels]. Views are independent, so the result does
// not depend on the number of threads.
void augment_images(const AugmentProblem& problem, const Threads& threads,
                    uint8_t* out);

namespace augment {

struct Shape {
  int64_t height;
  int64_t width;
  int64_t channels;
};

// The geometric operations, in a file of their own; `from` and `to` differ.
void shear(const uint8_t* from, const Shape& shape, bool vertical, bool cubic,
           double coefficient, uint8_t fill, uint8_t* to);
void translate(const uint8_t* from, const Shape& shape, bool vertical,
               double pixels, uint8_t fill, uint8_t* to);
void rotate(const uint8_t* from, const Shape& shape, double degrees,
            uint8_t fill, uint8_t* to);

}  // namespace augment
}  // namespace s3h::cpu
