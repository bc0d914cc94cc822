// Registers the CUDA kernels of the prototypes under the LibTorch stable ABI:
// the counterpart of prototypes.cpp.
#include "../cuda/prototypes.h"
#include "cuda_call.h"
#include "prototype_inputs.h"

namespace {

using namespace s3h::stable;

Tensor accumulate_prototypes(const Tensor& features, const Tensor& labels,
                             const Tensor& prototypes, const Tensor& masses,
                             const Tensor& offsets, const Tensor& sums,
                             const Tensor& counts, const Tensor& distortions,
                             const Tensor& far_distances,
                             const Tensor& far_features, bool cosine) {
  const AccumulateInputs in(features, labels, prototypes, masses, offsets, sums,
                            counts, distortions, far_distances, far_features);
  STD_TORCH_CHECK(in.depth > 0, "features must have a column");
  const CudaCall call(in.device);
  const s3h::cuda::AccumulateProblem problem{cosine,
                                             cuda_scalar(in.stored),
                                             in.features.const_data_ptr(),
                                             pointer<int64_t>(in.labels),
                                             in.prototypes.const_data_ptr(),
                                             in.masses.const_data_ptr(),
                                             data<int64_t>(in.offsets),
                                             in.n,
                                             in.rows,
                                             in.classes,
                                             in.depth};
  const Tensor assignments =
      torch::stable::new_empty(*in.labels, {in.n}, ScalarType::Long);
  const Tensor work = workspace(
      in.features, s3h::cuda::accumulate_prototypes_workspace(problem));
  call.check(
      s3h::cuda::accumulate_prototypes(
          problem, work.mutable_data_ptr(),
          {mutable_data<int64_t>(assignments), in.sums.mutable_data_ptr(),
           in.counts.mutable_data_ptr(), in.distortions.mutable_data_ptr(),
           in.far_distances.mutable_data_ptr(),
           in.far_features.mutable_data_ptr()},
          call.stream()),
      "accumulate_prototypes");
  return assignments;
}

void apply_prototypes_(const Tensor& prototypes, const Tensor& sums,
                       const Tensor& masses, const Tensor& offsets,
                       const Tensor& batch_sums, const Tensor& batch_counts,
                       const Tensor& distortions, const Tensor& far_features,
                       double momentum, double expire_below, bool cosine) {
  const ApplyInputs in(prototypes, sums, masses, offsets, batch_sums,
                       batch_counts, distortions, far_features);
  const CudaCall call(in.device);
  call.check(
      s3h::cuda::apply_prototypes(
          {cosine, in.type == ScalarType::Double, momentum, expire_below,
           data<int64_t>(in.offsets), in.rows, in.classes, in.depth,
           in.batch_sums.const_data_ptr(), in.batch_counts.const_data_ptr(),
           in.distortions.const_data_ptr(), in.far_features.const_data_ptr()},
          in.prototypes.mutable_data_ptr(), in.sums.mutable_data_ptr(),
          in.masses.mutable_data_ptr(), call.stream()),
      "apply_prototypes_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CUDA, library) {
  library.impl("accumulate_prototypes", TORCH_BOX(&accumulate_prototypes));
  library.impl("apply_prototypes_", TORCH_BOX(&apply_prototypes_));
}
