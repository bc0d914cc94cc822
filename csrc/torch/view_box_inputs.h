// The arguments of the box sampler, the same on every device: checked for types
// and shapes, and brought to the kernels' layout. Values are not looked at.
#pragma once

#include "tensors.h"

namespace s3h::stable {

// Owns the contiguous tensors for as long as the pointers are in use.
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
    sizes_step = sizes.size(0) == count ? 2 : 0;
    view_step = view.size(0) == count ? 1 : 0;
  }

  Device device;
  Tensor sizes, index, view;
  int64_t count = 0, sizes_step = 0, view_step = 0;

 private:
  Tensor whole_numbers(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, name,
                    " must be int64");
    return as_contiguous(tensor, ScalarType::Long, device);
  }
};

}  // namespace s3h::stable
