// Draws the boxes of many views on a GPU; csrc/common/boxes.h says what is
// drawn, and the bits are those of the CPU.
#pragma once

#include <cstdint>

#include "../common/view_box_problem.h"
#include "status.h"

namespace s3h::cuda {

// The caller has checked seed, epoch, stream and the constraint's length; what
// lies in device memory is taken as it is.
// boxes: [count, 4] top, left, height, width; fallback: [count].
Status draw_view_boxes(const ViewBoxProblem& problem, int64_t* boxes,
                       bool* fallback, Stream stream);

}  // namespace s3h::cuda
