// Registers the augmentation kernel under the LibTorch stable ABI; the schema
// lives in s3h_ext/ops/augment.py.
#include "../cpu/augment.h"

#include "augment_inputs.h"
#include "cpu_call.h"

namespace {

using namespace s3h::stable;
using s3h::kLargest;

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

Tensor augment_images(const Tensor& images, const Tensor& operations,
                      const Tensor& magnitudes, const Tensor& source,
                      const OptionalTensor& corners,
                      const OptionalTensor& flips, const OptionalTensor& holes,
                      int64_t fill) {
  const AugmentInputs in(images, operations, magnitudes, source, corners, flips,
                         holes, fill);
  STD_TORCH_CHECK(images.is_cpu(), "every tensor must be on the CPU");
  check_steps(data<int64_t>(in.operations), data<double>(in.magnitudes),
              in.views * in.steps);
  check_source(pointer<int64_t>(in.source), in.views, in.count);
  check_coordinates(in.corners, "corners");
  check_coordinates(in.holes, "holes");
  const Tensor out = in.output();
  s3h::cpu::augment_images(in.problem(), torch_threads(),
                           mutable_data<uint8_t>(out));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("augment_images", TORCH_BOX(&augment_images));
}
