// The arguments of the prototype operations, the same on every device: checked
// for what memory safety needs, and brought to the kernels' layout. What is in
// offsets and labels is checked where that does not mean to wait for a device.
#pragma once

#include <initializer_list>

#include "tensors.h"

namespace s3h::stable {

inline const Tensor& state(const Tensor& tensor, const Device& device,
                           ScalarType type, int64_t rows, int64_t depth,
                           const char* name) {
  STD_TORCH_CHECK(tensor.device() == device,
                  "every tensor must be on the same device");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name,
                  " must be float32, or float64 beside float64");
  const bool vector = depth < 0;
  STD_TORCH_CHECK(tensor.dim() == (vector ? 1 : 2) && tensor.size(0) == rows &&
                      (vector || tensor.size(1) == depth),
                  name, " must have the state's shape [", rows,
                  vector ? "" : ", " + std::to_string(depth), "], got ",
                  shape_of(tensor));
  return tensor;
}

inline void require_contiguous(std::initializer_list<Tensor> tensors,
                               const char* what) {
  for (const Tensor& tensor : tensors)
    STD_TORCH_CHECK(tensor.is_contiguous(), what, " must be contiguous");
}

inline Tensor offsets_of(const Tensor& offsets, const Device& device) {
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1,
                  "offsets must be [C + 1], got ", shape_of(offsets));
  return as_contiguous(offsets, ScalarType::Long, device);
}

inline ScalarType feature_type(const Tensor& features) {
  const ScalarType type = features.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                      type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "features must be float32, float64, bfloat16 or float16");
  return type;
}

// These own the converted tensors for as long as the pointers are in use.
struct SampleInputs {
  SampleInputs(const Tensor& features_in, const Tensor& labels_in)
      : device(features_in.device()),
        stored(feature_type(features_in)),
        type(stored == ScalarType::Double ? ScalarType::Double
                                          : ScalarType::Float),
        features(as_contiguous(features_in, stored, device)) {
    STD_TORCH_CHECK(features.dim() == 2, "features must be [N, D], got ",
                    shape_of(features));
    n = features.size(0);
    depth = features.size(1);
    labels = vector_of(labels_in, n, ScalarType::Long, device, "labels");
  }

  Device device;
  ScalarType stored, type;  // of the features, and of everything else
  int64_t n = 0, depth = 0;
  Tensor features;
  OptionalTensor labels;
};

// The results are written into buffers of the caller's: they are as large as
// the state, and fresh memory for them in each step costs more than the work.
struct AccumulateInputs : SampleInputs {
  AccumulateInputs(const Tensor& features_in, const Tensor& labels_in,
                   const Tensor& prototypes_in, const Tensor& masses_in,
                   const Tensor& offsets_in, const Tensor& sums_in,
                   const Tensor& counts_in, const Tensor& distortions_in,
                   const Tensor& far_distances_in,
                   const Tensor& far_features_in)
      : SampleInputs(features_in, labels_in),
        prototypes(prototypes_in),
        masses(masses_in),
        offsets(offsets_of(offsets_in, device)),
        sums(sums_in),
        counts(counts_in),
        distortions(distortions_in),
        far_distances(far_distances_in),
        far_features(far_features_in) {
    STD_TORCH_CHECK(prototypes.dim() == 2, "prototypes must be [S, D], got ",
                    shape_of(prototypes));
    rows = prototypes.size(0);
    classes = offsets.size(0) - 1;
    prototypes = as_contiguous(
        state(prototypes, device, type, rows, depth, "prototypes"), type,
        device);
    masses = as_contiguous(state(masses, device, type, rows, -1, "masses"),
                           type, device);
    require_contiguous({sums, counts, distortions, far_distances, far_features},
                       "out");
    state(sums, device, type, rows, depth, "out.sums");
    state(counts, device, type, rows, -1, "out.counts");
    state(distortions, device, type, rows, -1, "out.distortions");
    state(far_distances, device, type, classes, -1, "out.far_distances");
    state(far_features, device, type, classes, depth, "out.far_features");
  }

  int64_t rows = 0, classes = 0;
  Tensor prototypes, masses, offsets;
  Tensor sums, counts, distortions, far_distances, far_features;  // results
};

struct StateInputs {
  StateInputs(const Tensor& prototypes_in, const Tensor& sums_in,
              const Tensor& masses_in, const Tensor& offsets_in)
      : device(prototypes_in.device()),
        type(prototypes_in.scalar_type()),
        prototypes(prototypes_in),
        sums(sums_in),
        masses(masses_in),
        offsets(offsets_of(offsets_in, device)) {
    STD_TORCH_CHECK(prototypes.dim() == 2, "prototypes must be [S, D], got ",
                    shape_of(prototypes));
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "prototypes must be float32 or float64");
    rows = prototypes.size(0);
    depth = prototypes.size(1);
    classes = offsets.size(0) - 1;
    require_contiguous({prototypes, sums, masses},
                       "prototypes, sums and masses");
    state(sums, device, type, rows, depth, "sums");
    state(masses, device, type, rows, -1, "masses");
  }

  Device device;
  ScalarType type;
  int64_t rows = 0, depth = 0, classes = 0;
  Tensor prototypes, sums, masses;  // changed in place
  Tensor offsets;
};

struct ApplyInputs : StateInputs {
  ApplyInputs(const Tensor& prototypes_in, const Tensor& sums_in,
              const Tensor& masses_in, const Tensor& offsets_in,
              const Tensor& batch_sums_in, const Tensor& batch_counts_in,
              const Tensor& distortions_in, const Tensor& far_features_in)
      : StateInputs(prototypes_in, sums_in, masses_in, offsets_in),
        batch_sums(checked(batch_sums_in, rows, depth, "batch_sums")),
        batch_counts(checked(batch_counts_in, rows, -1, "batch_counts")),
        distortions(checked(distortions_in, rows, -1, "distortions")),
        far_features(checked(far_features_in, classes, depth, "far_features")) {
  }

  Tensor batch_sums, batch_counts, distortions, far_features;

 private:
  Tensor checked(const Tensor& tensor, int64_t count, int64_t width,
                 const char* name) const {
    return as_contiguous(state(tensor, device, type, count, width, name), type,
                         device);
  }
};

}  // namespace s3h::stable
