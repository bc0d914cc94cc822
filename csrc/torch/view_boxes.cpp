// Registers the box sampler under the LibTorch stable ABI; the schema lives in
// s3h_ext/ops/view_boxes.py.
#include "../cpu/view_boxes.h"

#include <tuple>
#include <vector>

#include "cpu_call.h"
#include "view_box_inputs.h"

namespace {

using namespace s3h::stable;

// Below this many boxes waking threads costs more than the work.
constexpr int64_t kSerial = 1024;

std::tuple<Tensor, Tensor> sample_view_boxes(const Tensor& sizes,
                                             const Tensor& sample_index,
                                             const Tensor& view,
                                             std::vector<double> constraint,
                                             int64_t seed, int64_t epoch,
                                             int64_t stream) {
  const ViewBoxInputs in(sizes, sample_index, view);
  STD_TORCH_CHECK(sample_index.is_cpu(), "every tensor must be on the CPU");
  const int64_t count = in.count;
  const s3h::cpu::ViewBoxProblem problem{
      count,
      data<int64_t>(in.sizes),
      in.sizes_step,
      data<int64_t>(in.index),
      data<int64_t>(in.view),
      in.view_step,
      constraint.data(),
      static_cast<int64_t>(constraint.size()),
      seed,
      epoch,
      stream};
  const auto fault = s3h::cpu::check_view_boxes(problem);
  STD_TORCH_CHECK(fault.argument == nullptr, s3h::cpu::fault_message(fault));
  const Tensor box =
      torch::stable::new_empty(in.index, {count, 4}, ScalarType::Long);
  const Tensor fallback =
      torch::stable::new_empty(in.index, {count}, ScalarType::Bool);
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
