// Runs the prototype kernels: accumulates a batch and takes it into the state.
//
//   prototypes PROBLEM RESULT     (the layout is in kernels.py)
#include "cuda/prototypes.h"
#include "problem_file.h"

using namespace s3h::cuda;
using namespace s3h::host;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Problem problem(arguments[1]);
  const auto type = static_cast<Scalar>(problem.number());
  const bool cosine = problem.number() != 0;
  const int64_t n = problem.number(), rows = problem.number();
  const int64_t classes = problem.number(), depth = problem.number();
  const double momentum = problem.real(), expire_below = problem.real();
  const Memory features = problem.array(), labels = problem.array();
  const Memory prototypes = problem.array(), sums = problem.array();
  const Memory masses = problem.array(), offsets = problem.array();
  const size_t real = type == Scalar::kFloat64 ? 8 : 4;

  const AccumulateProblem p{
      {cosine, features.get(), labels.get<const int64_t>(), prototypes.get(),
       masses.get(), offsets.get<const int64_t>(), n, rows, classes, depth},
      type};
  const Memory assignments = problem.empty(labels.bytes());
  const Memory batch_sums = problem.empty(sums.bytes());
  const Memory counts = problem.empty(masses.bytes());
  const Memory distortions = problem.empty(masses.bytes());
  const Memory far = problem.empty(static_cast<size_t>(classes) * real);
  const Memory far_features =
      problem.empty(static_cast<size_t>(classes * depth) * real);
  {
    const Memory workspace(accumulate_prototypes_workspace(p));
    check(accumulate_prototypes(
        p, workspace.get(),
        {assignments.get<int64_t>(), batch_sums.get(), counts.get(),
         distortions.get(), far.get(), far_features.get()},
        nullptr));
  }
  check(apply_prototypes({{{cosine, momentum, expire_below},
                           offsets.get<const int64_t>(),
                           rows,
                           classes,
                           depth,
                           batch_sums.get(),
                           counts.get(),
                           distortions.get(),
                           far_features.get()},
                          type == Scalar::kFloat64},
                         prototypes.get(), sums.get(), masses.get(), nullptr));
  Result result(arguments[2]);
  for (const Memory* each : {&assignments, &batch_sums, &counts, &distortions,
                             &far, &far_features, &prototypes, &sums, &masses})
    result.put(*each);
  return result.status();
}
