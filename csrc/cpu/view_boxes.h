// Draws the boxes of many views, as defined in csrc/common/boxes.h.
#pragma once

#include <cstdint>
#include <string>

#include "../common/view_box_problem.h"

namespace s3h::cpu {

// An invalid argument; none if `argument` is nullptr. Otherwise its name, the
// expected and the actual value, and the row (-1: not in a row).
struct ViewBoxFault {
  const char* argument;
  const char* expected;
  double got;
  int64_t row;
};

std::string fault_message(const ViewBoxFault& fault);

ViewBoxFault check_view_boxes(const ViewBoxProblem& problem);

// Rows begin .. end - 1 of a valid problem. `boxes` receives top, left, height,
// width of every row; `fallback` whether the constraint was missed.
void draw_view_boxes(const ViewBoxProblem& problem, int64_t begin, int64_t end,
                     int64_t* boxes, bool* fallback);

}  // namespace s3h::cpu
