// Runs the class-sum kernels, forward and backward.
//
//   class_sums PROBLEM RESULT     (the layout is in kernels.py)
#include "cuda/class_sums.h"
#include "problem_file.h"

using namespace s3h::cuda;
using namespace s3h::host;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Problem problem(arguments[1]);
  const auto type = static_cast<Scalar>(problem.number());
  const bool symmetric = problem.number() != 0;
  const int64_t n = problem.number(), m = problem.number();
  const int64_t depth = problem.number(), classes = problem.number();
  const bool need_queries = problem.number() != 0;
  const bool need_keys = problem.number() != 0;
  const Memory queries = problem.array(), keys = problem.array();
  const Memory query_classes = problem.array(), key_classes = problem.array();
  const Memory grad = problem.array();
  const ClassSumProblem p{{symmetric, queries.get(), keys.get(), n, m, depth,
                           query_classes.get<const int64_t>(),
                           key_classes.get<const int64_t>(), classes},
                          type};
  const size_t real = type == Scalar::kFloat64 ? 8 : 4;
  const Memory dots = problem.empty(static_cast<size_t>(n) * real);
  {
    const Memory workspace(class_sum_dots_workspace(p));
    check(class_sum_dots(p, workspace.get(), dots.get(), nullptr));
  }
  const Memory grad_queries =
      need_queries ? problem.empty(queries.bytes()) : Memory();
  const Memory grad_keys = need_keys ? problem.empty(keys.bytes()) : Memory();
  {
    const Memory workspace(class_sum_dots_backward_workspace(p));
    check(class_sum_dots_backward(p, workspace.get(), grad.get(),
                                  grad_queries.get(), grad_keys.get(),
                                  nullptr));
  }
  Result result(arguments[2]);
  result.put(dots);
  result.put(grad_queries);
  result.put(grad_keys);
  return result.status();
}
