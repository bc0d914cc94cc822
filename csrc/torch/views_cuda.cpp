// Registers the CUDA kernels of view rendering under the LibTorch stable ABI:
// the counterpart of views.cpp.
#include <vector>

#include "../cuda/views.h"
#include "cuda_call.h"
#include "view_inputs.h"

namespace {

using namespace s3h::stable;
using s3h::ByteImage;

ByteImage image_of(const Tensor& tensor) {
  const int64_t rank = tensor.dim();
  return {data<uint8_t>(tensor), tensor.size(rank - 3), tensor.size(rank - 2)};
}

Tensor render_views(std::vector<Tensor> images, const Tensor& image,
                    const Tensor& box, const OptionalTensor& flip,
                    const OptionalTensor& colour, const OptionalTensor& affine,
                    const OptionalTensor& view, const OptionalTensor& rect,
                    const OptionalTensor& erase, int64_t views, int64_t height,
                    int64_t width, std::vector<double> mean,
                    std::vector<double> std, double fill, bool nearest,
                    ScalarType dtype) {
  const ViewInputs in(images, image, box, flip, colour, affine, view, rect,
                      erase, views, height, width, mean, std, fill, nearest,
                      dtype);
  const CudaCall call(in.device);
  std::vector<ByteImage> list;
  if (!in.stacked)
    for (const Tensor& each : in.images) list.push_back(image_of(each));
  const s3h::cuda::ViewsProblem p{
      in.view_patches(),
      in.stacked ? image_of(in.images[0]) : ByteImage{nullptr, 0, 0},
      in.stacked || list.empty() ? nullptr : list.data(),
      in.stacked ? in.images[0].size(0) : static_cast<int64_t>(list.size())};
  const Tensor out = in.output();
  const Tensor work =
      workspace(*in.image, s3h::cuda::render_views_workspace(p));
  call.check(s3h::cuda::render_views(p, work.mutable_data_ptr(),
                                     out.mutable_data_ptr(), call.stream()),
             "render_views");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CUDA, library) {
  library.impl("render_views", TORCH_BOX(&render_views));
}
