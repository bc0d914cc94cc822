// Draws boxes.
//
//   view_boxes PROBLEM RESULT     (the layout is in kernels.py)
#include "cuda/view_boxes.h"
#include "problem_file.h"

using namespace s3h::cuda;
using namespace s3h::host;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Problem problem(arguments[1]);
  const int64_t n = problem.number(), sizes_step = problem.number();
  const int64_t view_step = problem.number(), seed = problem.number();
  const int64_t epoch = problem.number(), stream = problem.number();
  double constraint[s3h::kConstraintNumbers];
  for (double& each : constraint) each = problem.real();
  const Memory sizes = problem.array(), index = problem.array();
  const Memory view = problem.array();
  const Memory boxes = problem.empty(static_cast<size_t>(n) * 32);
  const Memory fallback = problem.empty(static_cast<size_t>(n));
  check(draw_view_boxes(
      {n, sizes.get<const int64_t>(), sizes_step, index.get<const int64_t>(),
       view.get<const int64_t>(), view_step, constraint,
       s3h::kConstraintNumbers, seed, epoch, stream},
      boxes.get<int64_t>(), fallback.get<bool>(), nullptr));
  Result result(arguments[2]);
  result.put(boxes);
  result.put(fallback);
  return result.status();
}
