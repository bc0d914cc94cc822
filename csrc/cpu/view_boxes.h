// Draws the boxes of many views; see csrc/common/boxes.h for what is drawn.
#pragma once

#include <cstdint>
#include <string>

#include "../common/view_box_problem.h"

namespace s3h::cpu {

// What is wrong with a problem: nothing where `argument` is nullptr, else its
// name, what was expected, what came, and in which row (-1: not in a row).
struct ViewBoxFault {
  const char* argument;
  const char* expected;
  double got;
  int64_t row;
};

std::string fault_message(const ViewBoxFault& fault);

ViewBoxFault check_view_boxes(const ViewBoxProblem& problem);

// Rows begin .. end - 1 of a problem without fault. `boxes` takes top, left,
// height, width of every row; `fallback` whether the constraint was missed.
void draw_view_boxes(const ViewBoxProblem& problem, int64_t begin, int64_t end,
                     int64_t* boxes, bool* fallback);

}  // namespace s3h::cpu
