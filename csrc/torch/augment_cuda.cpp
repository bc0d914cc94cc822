// Registers the CUDA kernel of augmentation under the LibTorch stable ABI: the
// counterpart of augment.cpp.
#include "../cuda/augment.h"
#include "augment_inputs.h"
#include "cuda_call.h"

namespace {

using namespace s3h::stable;

Tensor augment_images(const Tensor& images, const Tensor& operations,
                      const Tensor& magnitudes, const Tensor& source,
                      const OptionalTensor& corners,
                      const OptionalTensor& flips, const OptionalTensor& holes,
                      int64_t fill) {
  const AugmentInputs in(images, operations, magnitudes, source, corners, flips,
                         holes, fill);
  const CudaCall call(in.device);
  const s3h::AugmentProblem problem = in.problem();
  const Tensor out = in.output();
  const Tensor work =
      workspace(in.images, s3h::cuda::augment_images_workspace(problem));
  call.check(
      s3h::cuda::augment_images(problem, work.mutable_data_ptr(),
                                mutable_data<uint8_t>(out), call.stream()),
      "augment_images");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CUDA, library) {
  library.impl("augment_images", TORCH_BOX(&augment_images));
}
