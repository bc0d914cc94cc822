// Augmentation of uint8 images on a GPU: crop, flip, a list of operations and a
// hole, all of a step's views in one launch. The bytes are those of the CPU
// (csrc/cpu/augment.h): both take their arithmetic from csrc/common.
//
// No torch in here: device pointers, row-major and contiguous, and a stream. As
// in similarity.h nothing allocates, copies to or from the host, or waits. So
// nobody has looked at the values: one that is out of range stops the kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "status.h"

namespace s3h::cuda {

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

// Nothing for images that shared memory holds twice.
size_t augment_images_workspace(const AugmentProblem& problem);

// out: [M, height, width, channels].
Status augment_images(const AugmentProblem& problem, void* workspace,
                      uint8_t* out, Stream stream);

}  // namespace s3h::cuda
