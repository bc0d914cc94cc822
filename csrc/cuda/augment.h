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

#include "../common/augment_problem.h"
#include "status.h"

namespace s3h::cuda {

// Nothing for images that shared memory holds twice.
size_t augment_images_workspace(const AugmentProblem& problem);

// out: [M, height, width, channels].
Status augment_images(const AugmentProblem& problem, void* workspace,
                      uint8_t* out, Stream stream);

}  // namespace s3h::cuda
