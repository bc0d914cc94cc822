// Registers view rendering under the LibTorch stable ABI; the schema is in
// s3h_ext/ops/views.py. Values are checked only on the CPU.
#include "../cpu/views.h"

#include <algorithm>
#include <string>
#include <vector>

#include "../cuda/views.h"
#include "backend.h"

namespace {

using namespace s3h::stable;
using s3h::ByteImage;
using s3h::kLargestBoxSide;

ByteImage byte_image(const Tensor& tensor) {
  const int64_t rank = tensor.dim();
  return {data<uint8_t>(tensor), tensor.size(rank - 3), tensor.size(rank - 2)};
}

// Owns the contiguous tensors while their pointers are in use.
struct ViewInputs {
  ViewInputs(const std::vector<Tensor>& images_in, const Tensor& image_in,
             const Tensor& box_in, const OptionalTensor& flip_in,
             const OptionalTensor& colour_in, const OptionalTensor& affine_in,
             const OptionalTensor& view_in, const OptionalTensor& rect_in,
             const OptionalTensor& erase_in, int64_t views_in,
             int64_t height_in, int64_t width_in,
             const std::vector<double>& mean_in,
             const std::vector<double>& std_in, double fill_in, bool nearest_in,
             ScalarType type_in)
      : device(image_in.device()),
        channels(static_cast<int64_t>(mean_in.size())),
        patches(image_in.dim() == 1 ? image_in.size(0) : 0),
        views(views_in),
        height(height_in),
        width(width_in),
        mean(mean_in),
        std(std_in),
        fill(fill_in),
        nearest(nearest_in),
        type(type_in) {
    STD_TORCH_CHECK(channels == 1 || channels == 3,
                    "mean: expected 1 or 3 values");
    STD_TORCH_CHECK(std.size() == mean.size(), "std: expected as many as mean");
    STD_TORCH_CHECK(views >= 0 && height >= 1 && width >= 1,
                    "views, height, width: expected positive numbers");
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 ||
                        type == ScalarType::Half,
                    "dtype: expected float32, bfloat16 or float16");
    STD_TORCH_CHECK(image_in.dim() == 1, "patches.image: expected [P]");
    STD_TORCH_CHECK(view_in.has_value() || views == patches,
                    "views: expected one per patch");
    stacked = images_in.size() == 1 && images_in[0].dim() == 4;
    for (const Tensor& each : images_in) {
      STD_TORCH_CHECK(each.scalar_type() == ScalarType::Byte,
                      "images: expected uint8");
      STD_TORCH_CHECK(each.dim() == (stacked ? 4 : 3) &&
                          each.size(each.dim() - 1) == channels,
                      "images: expected ", channels, " channels last");
      images.push_back(as_contiguous(each, ScalarType::Byte, device));
    }
    image = rows_of(image_in, patches, 1, ScalarType::Long, "image");
    box = rows_of(box_in, patches, 4, ScalarType::Long, "box");
    flip = rows_of(flip_in, patches, 1, ScalarType::Bool, "flip");
    colour = rows_of(colour_in, patches, channels * (channels + 1),
                     ScalarType::Float, "colour");
    affine = rows_of(affine_in, patches, 6, ScalarType::Float, "affine");
    view = rows_of(view_in, patches, 1, ScalarType::Long, "view");
    rect = rows_of(rect_in, patches, 4, ScalarType::Long, "rect");
    erase = rows_of(erase_in, views, 4, ScalarType::Long, "erase");
  }

  // `list` holds the images unless they are stacked.
  s3h::ViewsProblem problem(const std::vector<ByteImage>& list) const {
    s3h::ViewsProblem p{
        stacked ? byte_image(images[0]) : ByteImage{},
        stacked ? nullptr : list.data(),
        stacked ? images[0].size(0) : static_cast<int64_t>(images.size()),
        channels,
        patches,
        pointer<int64_t>(image),
        pointer<int64_t>(box),
        pointer<bool>(flip),
        pointer<float>(colour),
        pointer<float>(affine),
        pointer<int64_t>(view),
        pointer<int64_t>(rect),
        pointer<int64_t>(erase),
        views,
        height,
        width,
        {},
        {},
        fill,
        nearest,
        type == ScalarType::Float      ? s3h::ViewType::kFloat
        : type == ScalarType::BFloat16 ? s3h::ViewType::kBfloat16
                                       : s3h::ViewType::kHalf};
    std::copy(mean.begin(), mean.end(), p.mean);
    std::copy(std.begin(), std.end(), p.std);
    return p;
  }

  Device device;
  int64_t channels, patches, views, height, width;
  std::vector<double> mean, std;
  double fill;
  bool nearest;
  ScalarType type;  // of the views
  bool stacked = false;
  std::vector<Tensor> images;  // one [N, H, W, C] if stacked
  OptionalTensor image, box, flip, colour, affine, view, rect, erase;

 private:
  OptionalTensor rows_of(const OptionalTensor& tensor, int64_t rows,
                         int64_t elements, ScalarType element_type,
                         const char* name) const {
    if (!tensor.has_value()) return std::nullopt;
    STD_TORCH_CHECK(tensor->dim() > 0 && tensor->size(0) == rows &&
                        tensor->numel() == rows * elements,
                    name, ": expected ", rows, " times ", elements,
                    " elements, got ", tensor->numel());
    STD_TORCH_CHECK(tensor->scalar_type() == element_type, name,
                    ": wrong type");
    return as_contiguous(*tensor, element_type, device);
  }
};

// A row of four numbers as text.
std::string four(const int64_t* row) {
  std::string text = "[";
  for (int i = 0; i < 4; ++i)
    text += (i > 0 ? ", " : "") + std::to_string(row[i]);
  return text + "]";
}

void check_values(const s3h::ViewsProblem& p) {
  // Far enough from the ends of int64 that sums of a few cannot overflow.
  constexpr int64_t kFar = int64_t{1} << 48;
  for (int64_t i = 0; i < p.patches; ++i) {
    STD_TORCH_CHECK(p.image[i] >= 0 && p.image[i] < p.images, "patches.image[",
                    i, "]: expected 0 .. ", p.images - 1, ", got ", p.image[i]);
    const int64_t* box = p.box + 4 * i;
    STD_TORCH_CHECK(box[2] >= 1 && box[3] >= 1 && box[2] <= kLargestBoxSide &&
                        box[3] <= kLargestBoxSide && box[0] > -kFar &&
                        box[0] < kFar && box[1] > -kFar && box[1] < kFar,
                    "patches.box[", i, "]: expected sides of 1 .. ",
                    kLargestBoxSide, " near the image, got ", four(box));
    STD_TORCH_CHECK(
        p.view == nullptr || (p.view[i] >= 0 && p.view[i] < p.views),
        "patches.view[", i, "]: expected 0 .. ", p.views - 1, ", got ",
        p.view == nullptr ? i : p.view[i]);
    if (p.rect == nullptr) continue;
    const int64_t* r = p.rect + 4 * i;
    STD_TORCH_CHECK(r[0] >= 0 && r[1] >= 0 && r[2] >= 1 && r[3] >= 1 &&
                        r[2] <= p.height && r[0] <= p.height - r[2] &&
                        r[3] <= p.width && r[1] <= p.width - r[3],
                    "patches.rect[", i, "]: expected a rectangle inside ",
                    p.height, " x ", p.width, ", got ", four(r));
  }
}

template <class Backend>
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
  const Backend backend(in.device);
  std::vector<ByteImage> list;
  if (!in.stacked)
    for (const Tensor& each : in.images) list.push_back(byte_image(each));
  const s3h::ViewsProblem problem = in.problem(list);
  const Tensor out =
      new_empty(*in.image, {views, height, width, in.channels}, dtype);
  void* to = out.mutable_data_ptr();
  if constexpr (Backend::kCuda) {
    backend.run(
        "render_views", *in.image, s3h::cuda::render_views_workspace(problem),
        [&](void* workspace, s3h::cuda::Stream stream) {
          return s3h::cuda::render_views(problem, workspace, to, stream);
        });
  } else {
    check_values(problem);
    s3h::cpu::render_views(problem, backend.threads(), to);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("render_views", TORCH_BOX(&render_views<LibraryBackend>));
}
