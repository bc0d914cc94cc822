// The arguments of view rendering, the same on every device: checked for types
// and shapes, and brought to the kernels' layout. Values are not looked at.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/view_patches.h"
#include "tensors.h"

namespace s3h::stable {

// Owns the contiguous tensors for as long as the pointers are in use.
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

  ViewPatches view_patches() const {
    ViewPatches p{channels,
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
                  type == ScalarType::Float      ? ViewType::kFloat
                  : type == ScalarType::BFloat16 ? ViewType::kBfloat16
                                                 : ViewType::kHalf};
    std::copy(mean.begin(), mean.end(), p.mean);
    std::copy(std.begin(), std.end(), p.std);
    return p;
  }

  Tensor output() const {
    return torch::stable::new_empty(*image, {views, height, width, channels},
                                    type);
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

}  // namespace s3h::stable
