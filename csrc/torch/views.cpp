// Registers view rendering under the LibTorch stable ABI; the schema lives in
// s3h_ext/ops/views.py.
#include "../cpu/views.h"

#include <string>
#include <vector>

#include "cpu_call.h"
#include "view_inputs.h"

namespace {

using namespace s3h::stable;
using s3h::ByteImage;
using s3h::kLargestBoxSide;
using s3h::cpu::ViewsProblem;

std::vector<ByteImage> list_of(const ViewInputs& in) {
  std::vector<ByteImage> list;
  if (!in.stacked) {
    for (const Tensor& image : in.images)
      list.push_back({data<uint8_t>(image), image.size(0), image.size(1)});
    return list;
  }
  const Tensor& stack = in.images[0];
  const int64_t height = stack.size(1), width = stack.size(2);
  for (int64_t i = 0; i < stack.size(0); ++i)
    list.push_back({data<uint8_t>(stack) + i * height * width * in.channels,
                    height, width});
  return list;
}

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
  STD_TORCH_CHECK(image.is_cpu(), "every tensor must be on the CPU");
  const std::vector<ByteImage> list = list_of(in);
  const Tensor out = in.output();
  const ViewsProblem p{in.view_patches(), list.data(), out.mutable_data_ptr()};
  check_values(p, static_cast<int64_t>(list.size()));
  s3h::cpu::render_views(p, torch_threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("render_views", TORCH_BOX(&render_views));
}
