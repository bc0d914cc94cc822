// Registers the augmentation kernel under the LibTorch stable ABI; the schema
// lives in s3h_ext/ops/augment.py.
#include "../cpu/augment.h"

#include <cmath>

#include "cpu_call.h"
#include "tensors.h"

namespace {

using namespace s3h::stable;
using s3h::cpu::kLargest;
using s3h::cpu::Operation;

// The tensor as a contiguous [rows, columns] of int64, its values small enough.
OptionalTensor coordinates(const OptionalTensor& tensor, int64_t rows,
                           int64_t columns, const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Long &&
                      tensor->dim() == 2 && tensor->size(0) == rows &&
                      tensor->size(1) == columns,
                  name, " must be int64 [", rows, ", ", columns, "]");
  const Tensor result = as_contiguous(*tensor, ScalarType::Long);
  const int64_t* values = data<int64_t>(result);
  for (int64_t i = 0; i < rows * columns; ++i)
    STD_TORCH_CHECK(values[i] >= -kLargest && values[i] <= kLargest, name,
                    " must be within +-", kLargest, ", got ", values[i]);
  return result;
}

void check_steps(const int64_t* operations, const double* magnitudes,
                 int64_t count) {
  constexpr double largest = static_cast<double>(kLargest);
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(operations[i] >= 0 &&
                        operations[i] < static_cast<int64_t>(Operation::kCount),
                    "operations must be numbers of Operation, got ",
                    operations[i]);
    const double magnitude = magnitudes[i];
    STD_TORCH_CHECK(std::abs(magnitude) <= largest,  // false for NaN
                    "magnitudes must be within +-", kLargest, ", got ",
                    magnitude);
    if (static_cast<Operation>(operations[i]) == Operation::kPosterize)
      STD_TORCH_CHECK(
          magnitude >= 0 && magnitude <= 8 && magnitude == std::rint(magnitude),
          "magnitudes of POSTERIZE must be whole bits 0 .. 8, got ", magnitude);
  }
}

Tensor augment_images(const Tensor& images_in, const Tensor& operations_in,
                      const Tensor& magnitudes_in, const Tensor& source_in,
                      const OptionalTensor& corners_in,
                      const OptionalTensor& flips_in,
                      const OptionalTensor& holes_in, int64_t fill) {
  STD_TORCH_CHECK(
      images_in.scalar_type() == ScalarType::Byte && images_in.dim() == 4,
      "images must be uint8 [N, H, W, C]");
  const Tensor images = as_contiguous(images_in, ScalarType::Byte);
  const int64_t channels = images.size(3);
  STD_TORCH_CHECK(channels == 1 || channels == 3,
                  "images must have 1 or 3 channels, got ", channels);
  STD_TORCH_CHECK(images.size(1) <= kLargest && images.size(2) <= kLargest,
                  "images must not be larger than ", kLargest, " a side");
  STD_TORCH_CHECK(fill >= 0 && fill <= 255, "fill must be 0 .. 255, got ",
                  fill);
  STD_TORCH_CHECK(operations_in.scalar_type() == ScalarType::Long &&
                      operations_in.dim() == 2,
                  "operations must be int64 [M, K]");
  const int64_t views = operations_in.size(0), steps = operations_in.size(1);
  STD_TORCH_CHECK(magnitudes_in.scalar_type() == ScalarType::Double &&
                      magnitudes_in.dim() == 2 &&
                      magnitudes_in.size(0) == views &&
                      magnitudes_in.size(1) == steps,
                  "magnitudes must be float64 [M, K] like operations");
  const Tensor operations = as_contiguous(operations_in, ScalarType::Long);
  const Tensor magnitudes = as_contiguous(magnitudes_in, ScalarType::Double);
  check_steps(data<int64_t>(operations), data<double>(magnitudes),
              views * steps);
  STD_TORCH_CHECK(source_in.scalar_type() == ScalarType::Long,
                  "source must be int64 [M]");
  const OptionalTensor source =
      vector_of(source_in, views, ScalarType::Long, "source");
  const int64_t count = images.size(0);
  for (int64_t i = 0; i < views; ++i) {
    const int64_t image = pointer<int64_t>(source)[i];
    STD_TORCH_CHECK(image >= 0 && image < count, "source must be 0 .. ",
                    count - 1, ", got ", image);
  }
  const OptionalTensor corners = coordinates(corners_in, views, 2, "corners");
  const OptionalTensor holes = coordinates(holes_in, views, 4, "holes");
  OptionalTensor flips;
  if (flips_in.has_value()) {
    STD_TORCH_CHECK(flips_in->scalar_type() == ScalarType::Bool,
                    "flips must be bool [M]");
    flips = vector_of(*flips_in, views, ScalarType::Bool, "flips");
  }
  const Tensor out = torch::stable::new_empty(
      images, {views, images.size(1), images.size(2), channels});
  s3h::cpu::augment_images(
      {data<uint8_t>(images), count, images.size(1), images.size(2), channels,
       views, steps, data<int64_t>(operations), data<double>(magnitudes),
       pointer<int64_t>(source), pointer<int64_t>(corners),
       pointer<bool>(flips), pointer<int64_t>(holes),
       static_cast<uint8_t>(fill)},
      torch_threads(), mutable_data<uint8_t>(out));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("augment_images", TORCH_BOX(&augment_images));
}
