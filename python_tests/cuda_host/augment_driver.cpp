// Augments images.
//
//   augment PROBLEM RESULT     (the layout is in kernels.py)
#include "cuda/augment.h"
#include "problem_file.h"

using namespace s3h::cuda;
using namespace s3h::host;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Problem problem(arguments[1]);
  shared_limit = static_cast<size_t>(problem.number());
  s3h::AugmentProblem p{};
  p.n = problem.number();
  p.height = problem.number();
  p.width = problem.number();
  p.channels = problem.number();
  p.views = problem.number();
  p.steps = problem.number();
  p.fill = static_cast<uint8_t>(problem.number());
  const Memory images = problem.array(), operations = problem.array();
  const Memory magnitudes = problem.array(), source = problem.array();
  const Memory corners = problem.array(), flips = problem.array();
  const Memory holes = problem.array();
  p.images = images.get<const uint8_t>();
  p.operations = operations.get<const int64_t>();
  p.magnitudes = magnitudes.get<const double>();
  p.source = source.get<const int64_t>();
  p.corners = corners.get<const int64_t>();
  p.flips = flips.get<const bool>();
  p.holes = holes.get<const int64_t>();
  const Memory out = problem.empty(
      static_cast<size_t>(p.views * p.height * p.width * p.channels));
  const Memory workspace(augment_images_workspace(p));
  check(augment_images(p, workspace.get(), out.get<uint8_t>(), nullptr));
  Result result(arguments[2]);
  result.put(out);
  return result.status();
}
