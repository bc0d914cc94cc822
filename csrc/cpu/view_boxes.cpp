// A thread owns a range of rows. A row is a pure function of its address, and
// nothing is shared, so neither ranges nor order matter. Most of the time goes
// into the Taylor series of a resized crop, a chain of divisions that gives the
// same bits on every machine. A row takes well below a microsecond, compared to
// milliseconds for rendering it.
//
// Numerics: double, one rounding per operation, compiled without contraction.
#include "view_boxes.h"

#include <cstdio>
#include <string>

#include "../common/boxes.h"

namespace s3h::cpu {

std::string fault_message(const ViewBoxFault& fault) {
  char got[32];
  std::snprintf(got, sizeof got, "%.17g", fault.got);
  std::string message = std::string(fault.argument) + ": expected " +
                        fault.expected + ", got " + got;
  if (fault.row >= 0) message += " in row " + std::to_string(fault.row);
  return message;
}

ViewBoxFault check_view_boxes(const ViewBoxProblem& p) {
  const auto fault = [](const char* argument, const char* expected, auto got,
                        int64_t row = -1) -> ViewBoxFault {
    return {argument, expected, static_cast<double>(got), row};
  };
  const auto fits = [](int64_t value, int bits) {
    return value >= 0 && value < int64_t{1} << bits;
  };
  if (!fits(p.seed, 32)) return fault("seed", "0 <= seed < 2**32", p.seed);
  if (!fits(p.epoch, 32)) return fault("epoch", "0 <= epoch < 2**32", p.epoch);
  if (!fits(p.stream, 8)) return fault("stream", "0 <= stream < 256", p.stream);
  if (p.constraint_numbers != kConstraintNumbers)
    return fault("constraint", "18 numbers", p.constraint_numbers);
  BoxConstraint constraint;
  const int wrong = read_constraint(p.constraint, &constraint);
  if (wrong >= 0)
    return fault("constraint", kConstraintRanges[wrong], p.constraint[wrong]);
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t* size = p.sizes + i * p.sizes_step;
    for (int side = 0; side < 2; ++side)
      if (size[side] < 1 || size[side] >= kMaxSide)
        return fault("sizes", "1 <= side < 2**24", size[side], i);
    if (p.sample_index[i] < 0)
      return fault("sample_index", "at least 0", p.sample_index[i], i);
    const int64_t view = p.view[i * p.view_step];
    if (!fits(view, 24)) return fault("view", "0 <= view < 2**24", view, i);
  }
  return fault(nullptr, nullptr, 0);
}

void draw_view_boxes(const ViewBoxProblem& p, int64_t begin, int64_t end,
                     int64_t* boxes, bool* fallback) {
  BoxConstraint constraint;
  if (read_constraint(p.constraint, &constraint) >= 0) return;
  for (int64_t i = begin; i < end; ++i) {
    const DrawAddress address{static_cast<uint32_t>(p.seed),
                              static_cast<uint32_t>(p.epoch),
                              static_cast<uint64_t>(p.sample_index[i]),
                              static_cast<uint32_t>(p.view[i * p.view_step]),
                              static_cast<uint32_t>(p.stream)};
    const int64_t* size = p.sizes + i * p.sizes_step;
    const DrawnBox drawn = draw_box(constraint, address, size[0], size[1]);
    int64_t* to = boxes + 4 * i;
    to[0] = drawn.box.top;
    to[1] = drawn.box.left;
    to[2] = drawn.box.height;
    to[3] = drawn.box.width;
    fallback[i] = drawn.fallback;
  }
}

}  // namespace s3h::cpu
