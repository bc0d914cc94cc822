// Runs the similarity kernels, forward and backward.
//
//   similarity PROBLEM RESULT     (the layout is in kernels.py)
#include "cuda/similarity.h"
#include "problem_file.h"

using namespace s3h::cuda;
using namespace s3h::host;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Problem problem(arguments[1]);
  const auto type = static_cast<Scalar>(problem.number());
  const bool symmetric = problem.number() != 0;
  const int64_t n = problem.number(), m = problem.number();
  const int64_t depth = problem.number();
  SimilarityOptions options;
  options.assume_normalized = problem.number() != 0;
  options.deterministic = problem.number() != 0;
  options.allow_tf32 = problem.number() != 0;
  const bool need_queries = problem.number() != 0;
  const bool need_keys = problem.number() != 0;
  shared_limit = static_cast<size_t>(problem.number());
  const double temperature = problem.real(), same_label_value = problem.real();
  const Memory queries = problem.array(), keys = problem.array();
  const Memory key_bias = problem.array(), query_labels = problem.array();
  const Memory key_labels = problem.array(), same = problem.array();
  const Memory self = problem.array(), grad = problem.array();
  const SimilarityProblem p{
      {symmetric, queries.get(), keys.get(), n, m, depth, temperature,
       key_bias.get(), query_labels.get<const int64_t>(),
       key_labels.get<const int64_t>(), same.get(), same_label_value,
       self.get<const int64_t>()},
      type};
  const Memory lse = problem.empty(grad.bytes());
  const Memory correction = problem.empty(static_cast<size_t>(n) * 4);
  {
    const Memory workspace(logsumexp_workspace(p, options));
    check(logsumexp(p, options, workspace.get(), lse.get(), correction.get(),
                    nullptr));
  }
  const Memory grad_queries =
      need_queries ? problem.empty(queries.bytes()) : Memory();
  const Memory grad_keys = need_keys ? problem.empty(keys.bytes()) : Memory();
  {
    const Memory workspace(
        logsumexp_backward_workspace(p, options, need_queries, need_keys));
    check(logsumexp_backward(p, options, workspace.get(), grad.get(), lse.get(),
                             correction.get(), grad_queries.get(),
                             grad_keys.get(), nullptr));
  }
  Result result(arguments[2]);
  result.put(lse);
  result.put(grad_queries);
  result.put(grad_keys);
  return result.status();
}
