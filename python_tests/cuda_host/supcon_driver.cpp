// Runs the supervised contrastive loss forward and backward on a problem from a
// file and writes what it returns, and how many launches it took.
//
//   supcon PROBLEM RESULT     (kernels.py: supcon)
#include "cuda/elements.cuh"
#include "cuda/supcon.h"
#include "problem_file.h"

int main(int count, char** arguments) {
  using namespace s3h::cuda;
  using s3h::host::check;
  if (count != 3) return 2;
  s3h::host::Problem file(arguments[1]);
  const auto type = static_cast<Scalar>(file.number());
  const int64_t n = file.number(), depth = file.number();
  const int64_t classes = file.number();
  const auto reduction = static_cast<s3h::Reduction>(file.number());
  const bool deterministic = file.number() != 0;
  const double temperature = file.real();
  const auto features = file.array(), labels = file.array(),
             grad = file.array();
  const SupConProblem problem{
      {features.get(), labels.get<const int64_t>(), n, depth, classes,
       temperature, reduction, deterministic},
      type,
      false};

  const size_t real = real_size(type);
  const auto loss = file.empty(grad.bytes()), counted = file.empty(8);
  const auto lse = file.empty(real * n);
  // torch's own memory, aligned whatever the arrays are.
  const s3h::host::Memory kept(sizeof(float) * supcon_kept(problem));
  {
    const s3h::host::Memory workspace(supcon_workspace(problem));
    check(supcon(problem, workspace.get(), loss.get(), counted.get<int64_t>(),
                 lse.get(), kept.get<float>(), nullptr));
  }
  const auto gradient = file.empty(features.bytes());
  {
    const s3h::host::Memory workspace(supcon_backward_workspace(problem));
    check(supcon_backward(problem, workspace.get(), grad.get(), lse.get(),
                          kept.get<float>(), gradient.get(), nullptr));
  }
  const s3h::host::Memory launches(8);
  *launches.get<int64_t>() = s3h::host::launch_count;

  s3h::host::Result result(arguments[2]);
  result.put(loss);
  result.put(counted);
  result.put(gradient);
  result.put(launches);
  return result.status();
}
