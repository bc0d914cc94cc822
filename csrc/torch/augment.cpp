// Registers augmentation under the LibTorch stable ABI; the schema is in
// s3h_ext/ops/augment.py. Values are checked only on the CPU.
#include "../cpu/augment.h"

#include "../common/augment_steps.h"
#include "../cuda/augment.h"
#include "backend.h"

namespace {

using namespace s3h::stable;
using s3h::kLargest;

// Owns the contiguous tensors while their pointers are in use.
struct AugmentInputs {
  AugmentInputs(const Tensor& images_in, const Tensor& operations_in,
                const Tensor& magnitudes_in, const Tensor& source_in,
                const OptionalTensor& corners_in,
                const OptionalTensor& flips_in, const OptionalTensor& holes_in,
                int64_t fill_in)
      : device(images_in.device()) {
    STD_TORCH_CHECK(
        images_in.scalar_type() == ScalarType::Byte && images_in.dim() == 4,
        "images must be uint8 [N, H, W, C]");
    images = as_contiguous(images_in, ScalarType::Byte, device);
    count = images.size(0);
    height = images.size(1);
    width = images.size(2);
    channels = images.size(3);
    STD_TORCH_CHECK(channels == 1 || channels == 3,
                    "images must have 1 or 3 channels, got ", channels);
    STD_TORCH_CHECK(height <= kLargest && width <= kLargest,
                    "images must not be larger than ", kLargest, " a side");
    STD_TORCH_CHECK(fill_in >= 0 && fill_in <= 255,
                    "fill must be 0 .. 255, got ", fill_in);
    fill = static_cast<uint8_t>(fill_in);
    STD_TORCH_CHECK(operations_in.scalar_type() == ScalarType::Long &&
                        operations_in.dim() == 2,
                    "operations must be int64 [M, K]");
    views = operations_in.size(0);
    steps = operations_in.size(1);
    STD_TORCH_CHECK(magnitudes_in.scalar_type() == ScalarType::Double &&
                        magnitudes_in.dim() == 2 &&
                        magnitudes_in.size(0) == views &&
                        magnitudes_in.size(1) == steps,
                    "magnitudes must be float64 [M, K] like operations");
    operations = as_contiguous(operations_in, ScalarType::Long, device);
    magnitudes = as_contiguous(magnitudes_in, ScalarType::Double, device);
    STD_TORCH_CHECK(source_in.scalar_type() == ScalarType::Long,
                    "source must be int64 [M]");
    source = vector_of(source_in, views, ScalarType::Long, device, "source");
    corners = coordinates(corners_in, 2, "corners");
    holes = coordinates(holes_in, 4, "holes");
    if (flips_in.has_value()) {
      STD_TORCH_CHECK(flips_in->scalar_type() == ScalarType::Bool,
                      "flips must be bool [M]");
      flips = vector_of(*flips_in, views, ScalarType::Bool, device, "flips");
    }
  }

  s3h::AugmentProblem problem() const {
    return {data<uint8_t>(images),
            count,
            height,
            width,
            channels,
            views,
            steps,
            data<int64_t>(operations),
            data<double>(magnitudes),
            pointer<int64_t>(source),
            pointer<int64_t>(corners),
            pointer<bool>(flips),
            pointer<int64_t>(holes),
            fill};
  }

  Device device;
  Tensor images, operations, magnitudes;
  int64_t count = 0, height = 0, width = 0, channels = 0, views = 0, steps = 0;
  uint8_t fill = 0;
  OptionalTensor source, corners, flips, holes;

 private:
  OptionalTensor coordinates(const OptionalTensor& tensor, int64_t columns,
                             const char* name) const {
    if (!tensor.has_value()) return std::nullopt;
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Long &&
                        tensor->dim() == 2 && tensor->size(0) == views &&
                        tensor->size(1) == columns,
                    name, " must be int64 [", views, ", ", columns, "]");
    return as_contiguous(*tensor, ScalarType::Long, device);
  }
};

void check_steps(const int64_t* operations, const double* magnitudes,
                 int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(s3h::is_operation(operations[i]),
                    "operations must be numbers of Operation, got ",
                    operations[i]);
    STD_TORCH_CHECK(s3h::is_magnitude(magnitudes[i]),
                    "magnitudes must be within +-", kLargest, ", got ",
                    magnitudes[i]);
    if (static_cast<s3h::Operation>(operations[i]) ==
        s3h::Operation::kPosterize)
      STD_TORCH_CHECK(s3h::is_bits(magnitudes[i]),
                      "magnitudes of POSTERIZE must be whole bits 0 .. 8, got ",
                      magnitudes[i]);
    if (static_cast<s3h::Operation>(operations[i]) == s3h::Operation::kBlur)
      STD_TORCH_CHECK(s3h::is_deviation(magnitudes[i]),
                      "magnitudes of BLUR must be 0 .. 64 pixels, got ",
                      magnitudes[i]);
  }
}

void check_source(const int64_t* source, int64_t views, int64_t images) {
  for (int64_t i = 0; i < views; ++i)
    STD_TORCH_CHECK(source[i] >= 0 && source[i] < images,
                    "source must be 0 .. ", images - 1, ", got ", source[i]);
}

void check_coordinates(const OptionalTensor& tensor, const char* name) {
  if (!tensor.has_value()) return;
  const int64_t* values = data<int64_t>(*tensor);
  for (int64_t i = 0; i < tensor->numel(); ++i)
    STD_TORCH_CHECK(s3h::is_coordinate(values[i]), name, " must be within +-",
                    kLargest, ", got ", values[i]);
}

template <class Backend>
Tensor augment_images(const Tensor& images, const Tensor& operations,
                      const Tensor& magnitudes, const Tensor& source,
                      const OptionalTensor& corners,
                      const OptionalTensor& flips, const OptionalTensor& holes,
                      int64_t fill) {
  const AugmentInputs in(images, operations, magnitudes, source, corners, flips,
                         holes, fill);
  const Backend backend(in.device);
  const s3h::AugmentProblem problem = in.problem();
  const Tensor out =
      new_empty(in.images, {in.views, in.height, in.width, in.channels},
                ScalarType::Byte);
  auto* to = mutable_data<uint8_t>(out);
  if constexpr (Backend::kCuda) {
    backend.run("augment_images", in.images,
                s3h::cuda::augment_images_workspace(problem),
                [&](void* workspace, s3h::cuda::Stream stream) {
                  return s3h::cuda::augment_images(problem, workspace, to,
                                                   stream);
                });
  } else {
    check_steps(problem.operations, problem.magnitudes, in.views * in.steps);
    check_source(problem.source, in.views, in.count);
    check_coordinates(in.corners, "corners");
    check_coordinates(in.holes, "holes");
    s3h::cpu::augment_images(problem, backend.threads(), to);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("augment_images", TORCH_BOX(&augment_images<LibraryBackend>));
}
