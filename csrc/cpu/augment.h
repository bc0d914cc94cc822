// Augmentation of small uint8 images, operation by operation as Pillow does it:
//
//   view = cut a hole( op_K( ... op_1( flip( crop( image ) ) ) ) )
//
// Every operation rounds to uint8, so lists of them give what the same calls of
// ImageOps, ImageEnhance and Image.transform give. The arithmetic is in
// csrc/common/augment_tones.h and augment_maps.h, which the GPU uses too.
#pragma once

#include <cstdint>

#include "../common/augment_problem.h"
#include "../common/augment_steps.h"
#include "threads.h"

namespace s3h::cpu {

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
