// Views rendered from patches of byte images in one pass: crop, mirror, resize
// (antialiased bilinear) or affine map, colour matrix, clamp, normalise, place,
// erase.
//
// No torch in here: plain pointers and sizes, row-major and contiguous, and a
// parallel_for handed in. The caller has checked every index and rectangle.
#pragma once

#include <cstdint>

#include "../common/views_problem.h"
#include "threads.h"

namespace s3h::cpu {

// A view is rendered by one thread and from its own patches alone: its bits
// depend neither on the number of threads nor on the other views.
//
// out: [views, height, width, channels].
void render_views(const ViewsProblem& problem, const Threads& threads,
                  void* out);

}  // namespace s3h::cpu
