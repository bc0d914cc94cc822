// Registers the CUDA box sampler under the LibTorch stable ABI: the counterpart
// of view_boxes.cpp.
#include <tuple>
#include <vector>

#include "../cuda/view_boxes.h"
#include "cuda_call.h"
#include "view_box_inputs.h"

namespace {

using namespace s3h::stable;

std::tuple<Tensor, Tensor> sample_view_boxes(const Tensor& sizes,
                                             const Tensor& sample_index,
                                             const Tensor& view,
                                             std::vector<double> constraint,
                                             int64_t seed, int64_t epoch,
                                             int64_t stream) {
  const ViewBoxInputs in(sizes, sample_index, view);
  const CudaCall call(in.device);
  STD_TORCH_CHECK(constraint.size() == s3h::cuda::kBoxConstraintNumbers,
                  "constraint: expected ", s3h::cuda::kBoxConstraintNumbers,
                  " numbers, got ", constraint.size());
  const Tensor box =
      torch::stable::new_empty(in.index, {in.count, 4}, ScalarType::Long);
  const Tensor fallback =
      torch::stable::new_empty(in.index, {in.count}, ScalarType::Bool);
  call.check(s3h::cuda::draw_view_boxes(
                 {in.count, data<int64_t>(in.sizes), in.sizes_step,
                  data<int64_t>(in.index), data<int64_t>(in.view), in.view_step,
                  seed, epoch, stream},
                 constraint.data(), mutable_data<int64_t>(box),
                 mutable_data<bool>(fallback), call.stream()),
             "sample_view_boxes");
  return {box, fallback};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CUDA, library) {
  library.impl("sample_view_boxes", TORCH_BOX(&sample_view_boxes));
}
