// Registers view rendering under the LibTorch stable ABI; the schema lives in
// s3h_ext/ops/views.py.
#include "../cpu/views.h"

#include <vector>

#include "cpu_call.h"
#include "tensors.h"

namespace {

using namespace s3h::stable;
using s3h::cpu::ByteImage;
using s3h::cpu::kLargestBoxSide;
using s3h::cpu::ViewsProblem;
using s3h::cpu::ViewType;

OptionalTensor rows_of(const OptionalTensor& tensor, int64_t rows,
                       int64_t elements, ScalarType type, const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() > 0 && tensor->size(0) == rows &&
                      tensor->numel() == rows * elements,
                  name, ": expected ", rows, " times ", elements,
                  " elements, got ", tensor->numel());
  STD_TORCH_CHECK(tensor->scalar_type() == type, name, ": wrong type");
  return as_contiguous(*tensor, type);
}

// Owns the contiguous images for as long as the pointers are in use.
struct Images {
  Images(const std::vector<Tensor>& images, int64_t channels) {
    const bool stacked = images.size() == 1 && images[0].dim() == 4;
    for (const Tensor& image : images) {
      STD_TORCH_CHECK(image.scalar_type() == ScalarType::Byte,
                      "images: expected uint8");
      STD_TORCH_CHECK(image.dim() == (stacked ? 4 : 3) &&
                          image.size(image.dim() - 1) == channels,
                      "images: expected ", channels, " channels last");
      tensors.push_back(as_contiguous(image, ScalarType::Byte));
    }
    if (!stacked) {
      for (const Tensor& image : tensors)
        list.push_back({data<uint8_t>(image), image.size(0), image.size(1)});
      return;
    }
    const int64_t height = tensors[0].size(1), width = tensors[0].size(2);
    for (int64_t i = 0; i < tensors[0].size(0); ++i)
      list.push_back({data<uint8_t>(tensors[0]) + i * height * width * channels,
                      height, width});
  }

  std::vector<Tensor> tensors;
  std::vector<ByteImage> list;
};

// A row of four numbers, to be shown.
std::string four(const int64_t* row) {
  std::string text = "[";
  for (int i = 0; i < 4; ++i)
    text += (i > 0 ? ", " : "") + std::to_string(row[i]);
  return text + "]";
}

void check_values(const ViewsProblem& p, int64_t images) {
  // Far enough from the ends of int64 that sums of a few cannot overflow.
  constexpr int64_t kFar = int64_t{1} << 48;
  for (int64_t i = 0; i < p.patches; ++i) {
    STD_TORCH_CHECK(p.image[i] >= 0 && p.image[i] < images, "patches.image[", i,
                    "]: expected 0 .. ", images - 1, ", got ", p.image[i]);
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

Tensor render_views(
    std::vector<Tensor> images_in, const Tensor& image, const Tensor& box,
    const OptionalTensor& flip_in, const OptionalTensor& colour_in,
    const OptionalTensor& affine_in, const OptionalTensor& view_in,
    const OptionalTensor& rect_in, const OptionalTensor& erase_in,
    int64_t views, int64_t height, int64_t width, std::vector<double> mean,
    std::vector<double> std, double fill, bool nearest, ScalarType dtype) {
  const auto channels = static_cast<int64_t>(mean.size());
  STD_TORCH_CHECK(channels == 1 || channels == 3,
                  "mean: expected 1 or 3 values");
  STD_TORCH_CHECK(std.size() == mean.size(), "std: expected as many as mean");
  STD_TORCH_CHECK(views >= 0 && height >= 1 && width >= 1,
                  "views, height, width: expected positive numbers");
  const Images images(images_in, channels);
  STD_TORCH_CHECK(image.dim() == 1, "patches.image: expected [P]");
  const int64_t count = image.size(0);
  STD_TORCH_CHECK(view_in.has_value() || views == count,
                  "views: expected one per patch");
  const auto index = rows_of(image, count, 1, ScalarType::Long, "image");
  const auto boxes = rows_of(box, count, 4, ScalarType::Long, "box");
  const auto flip = rows_of(flip_in, count, 1, ScalarType::Bool, "flip");
  const auto colour = rows_of(colour_in, count, channels * (channels + 1),
                              ScalarType::Float, "colour");
  const auto affine = rows_of(affine_in, count, 6, ScalarType::Float, "affine");
  const auto view = rows_of(view_in, count, 1, ScalarType::Long, "view");
  const auto rect = rows_of(rect_in, count, 4, ScalarType::Long, "rect");
  const auto erase = rows_of(erase_in, views, 4, ScalarType::Long, "erase");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  "dtype: expected float32, bfloat16 or float16");
  Tensor out =
      torch::stable::new_empty(image, {views, height, width, channels}, dtype);
  ViewsProblem p{images.list.data(),
                 channels,
                 count,
                 pointer<int64_t>(index),
                 pointer<int64_t>(boxes),
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
                 dtype == ScalarType::Float      ? ViewType::kFloat
                 : dtype == ScalarType::BFloat16 ? ViewType::kBfloat16
                                                 : ViewType::kHalf,
                 out.mutable_data_ptr()};
  std::copy(mean.begin(), mean.end(), p.mean);
  std::copy(std.begin(), std.end(), p.std);
  check_values(p, static_cast<int64_t>(images.list.size()));
  s3h::cpu::render_views(p, torch_threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("render_views", TORCH_BOX(&render_views));
}
