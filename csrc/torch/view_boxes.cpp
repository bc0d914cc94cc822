// Registers the box sampler under the LibTorch stable ABI; the schema is in
// s3h_ext/ops/view_boxes.py.
#include "../cpu/view_boxes.h"

#include <tuple>
#include <vector>

#include "../cuda/view_boxes.h"
#include "backend.h"

namespace {

using namespace s3h::stable;

// On a CPU, below this many boxes, waking threads costs more than the work.
constexpr int64_t kSerial = 1024;

// Owns the contiguous tensors while their pointers are in use.
struct ViewBoxInputs {
  ViewBoxInputs(const Tensor& sizes_in, const Tensor& index_in,
                const Tensor& view_in)
      : device(index_in.device()),
        sizes(whole_numbers(sizes_in, "sizes")),
        index(whole_numbers(index_in, "sample_index")),
        view(whole_numbers(view_in, "view")) {
    STD_TORCH_CHECK(index.dim() == 1, "sample_index must be [N]");
    count = index.size(0);
    STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(1) == 2 &&
                        (sizes.size(0) == count || sizes.size(0) == 1),
                    "sizes must be [N, 2] or [1, 2]");
    STD_TORCH_CHECK(
        view.dim() == 1 && (view.size(0) == count || view.size(0) == 1),
        "view must be [N] or [1]");
  }

  s3h::ViewBoxProblem problem(const std::vector<double>& constraint,
                              int64_t seed, int64_t epoch,
                              int64_t stream) const {
    return {count,
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
  }

  Device device;
  Tensor sizes, index, view;
  int64_t count = 0;

 private:
  Tensor whole_numbers(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, name,
                    " must be int64");
    return as_contiguous(tensor, ScalarType::Long, device);
  }
};

template <class Backend>
std::tuple<Tensor, Tensor> sample_view_boxes(const Tensor& sizes,
                                             const Tensor& sample_index,
                                             const Tensor& view,
                                             std::vector<double> constraint,
                                             int64_t seed, int64_t epoch,
                                             int64_t stream) {
  const ViewBoxInputs in(sizes, sample_index, view);
  const Backend backend(in.device);
  const s3h::ViewBoxProblem problem =
      in.problem(constraint, seed, epoch, stream);
  const Tensor box = new_empty(in.index, {in.count, 4}, ScalarType::Long);
  const Tensor fallback = new_empty(in.index, {in.count}, ScalarType::Bool);
  int64_t* boxes = mutable_data<int64_t>(box);
  bool* flags = mutable_data<bool>(fallback);
  if constexpr (Backend::kCuda) {
    STD_TORCH_CHECK(problem.constraint_numbers == s3h::kConstraintNumbers,
                    "constraint: expected ", s3h::kConstraintNumbers,
                    " numbers, got ", problem.constraint_numbers);
    backend.run("sample_view_boxes", [&](s3h::cuda::Stream current) {
      return s3h::cuda::draw_view_boxes(problem, boxes, flags, current);
    });
  } else {
    const auto fault = s3h::cpu::check_view_boxes(problem);
    STD_TORCH_CHECK(fault.argument == nullptr, s3h::cpu::fault_message(fault));
    const auto draw = [&](int64_t begin, int64_t end) {
      s3h::cpu::draw_view_boxes(problem, begin, end, boxes, flags);
    };
    if (in.count < kSerial)
      draw(0, in.count);
    else
      backend.threads().parallel_for(0, in.count, draw);
  }
  return {box, fallback};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("sample_view_boxes",
               TORCH_BOX(&sample_view_boxes<LibraryBackend>));
}
