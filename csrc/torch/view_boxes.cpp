// Registers the box sampler under the LibTorch stable ABI; the schema lives in
// s3h_ext/ops/view_boxes.py.
#include "../cpu/view_boxes.h"

#include <tuple>
#include <vector>

#include "cpu_call.h"
#include "tensors.h"

namespace {

using namespace s3h::stable;

// Below this many boxes waking threads costs more than the work.
constexpr int64_t kSerial = 1024;

Tensor whole_numbers(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, name,
                  " must be int64");
  return as_contiguous(tensor, ScalarType::Long);
}

std::tuple<Tensor, Tensor> sample_view_boxes(const Tensor& sizes_in,
                                             const Tensor& index_in,
                                             const Tensor& view_in,
                                             std::vector<double> constraint,
                                             int64_t seed, int64_t epoch,
                                             int64_t stream) {
  const Tensor sizes = whole_numbers(sizes_in, "sizes");
  const Tensor index = whole_numbers(index_in, "sample_index");
  const Tensor view = whole_numbers(view_in, "view");
  STD_TORCH_CHECK(index.dim() == 1, "sample_index must be [N]");
  const int64_t count = index.size(0);
  STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(1) == 2 &&
                      (sizes.size(0) == count || sizes.size(0) == 1),
                  "sizes must be [N, 2] or [1, 2]");
  STD_TORCH_CHECK(
      view.dim() == 1 && (view.size(0) == count || view.size(0) == 1),
      "view must be [N] or [1]");
  const s3h::cpu::ViewBoxProblem problem{
      count,
      data<int64_t>(sizes),
      sizes.size(0) == count ? 2 : 0,
      data<int64_t>(index),
      data<int64_t>(view),
      view.size(0) == count ? 1 : 0,
      constraint.data(),
      static_cast<int64_t>(constraint.size()),
      seed,
      epoch,
      stream};
  const auto fault = s3h::cpu::check_view_boxes(problem);
  STD_TORCH_CHECK(fault.argument == nullptr, s3h::cpu::fault_message(fault));
  const Tensor box =
      torch::stable::new_empty(index, {count, 4}, ScalarType::Long);
  const Tensor fallback =
      torch::stable::new_empty(index, {count}, ScalarType::Bool);
  const auto body = [&](int64_t begin, int64_t end) {
    s3h::cpu::draw_view_boxes(problem, begin, end, mutable_data<int64_t>(box),
                              mutable_data<bool>(fallback));
  };
  if (count < kSerial)
    body(0, count);
  else
    torch_threads().parallel_for(0, count, body);
  return {box, fallback};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("sample_view_boxes", TORCH_BOX(&sample_view_boxes));
}
