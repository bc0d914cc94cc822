// Views rendered from patches of byte images on a GPU: all of a step's in one
// launch.
//
// No torch in here: device pointers, row-major and contiguous, and a stream. As
// in similarity.h nothing allocates, copies to or from the host, or waits. So
// nobody has looked at the values: an index, a box or a rectangle that is out
// of range stops the kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/views_problem.h"
#include "status.h"

namespace s3h::cuda {

size_t render_views_workspace(const ViewsProblem& problem);

// out: [views, height, width, channels] of the type, aligned to 4.
Status render_views(const ViewsProblem& problem, void* workspace, void* out,
                    Stream stream);

}  // namespace s3h::cuda
