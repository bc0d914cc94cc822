// Augmentation of small uint8 images, each operation as in Pillow:
//
//   view = cut a hole( op_K( ... op_1( flip( crop( image ) ) ) ) )
//
// Every operation rounds to uint8, so a list of them equals the same calls of
// ImageOps, ImageEnhance and Image.transform. The arithmetic is in
// csrc/common/augment_tones.h and augment_maps.h, shared with the GPU.
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

// The geometric operations, in a separate file; `from` and `to` must differ.
void shear(const uint8_t* from, const Shape& shape, bool vertical, bool cubic,
           double coefficient, uint8_t fill, uint8_t* to);
void translate(const uint8_t* from, const Shape& shape, bool vertical,
               double pixels, uint8_t fill, uint8_t* to);
void rotate(const uint8_t* from, const Shape& shape, double degrees,
            uint8_t fill, uint8_t* to);

}  // namespace augment
}  // namespace s3h::cpu
