// Registers the prototype kernels under the LibTorch stable ABI; the schemas
// are in s3h_ext/ops/prototypes.py. Values of offsets and labels are checked
// only if that does not synchronise with a device.
#include "../cpu/prototypes.h"

#include <initializer_list>
#include <string>

#include "../cpu/bfloat16.h"
#include "../cpu/float16.h"
#include "../cuda/prototypes.h"
#include "backend.h"

namespace {

using namespace s3h::stable;
using s3h::cpu::Bfloat16;
using s3h::cpu::Float16;

const Tensor& state(const Tensor& tensor, const Device& device, ScalarType type,
                    int64_t rows, int64_t depth, const char* name) {
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

void require_contiguous(std::initializer_list<Tensor> tensors,
                        const char* what) {
  for (const Tensor& tensor : tensors)
    STD_TORCH_CHECK(tensor.is_contiguous(), what, " must be contiguous");
}

Tensor offsets_of(const Tensor& offsets, const Device& device) {
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1,
                  "offsets must be [C + 1], got ", shape_of(offsets));
  return as_contiguous(offsets, ScalarType::Long, device);
}

ScalarType feature_type(const Tensor& features) {
  const ScalarType type = features.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                      type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "features must be float32, float64, bfloat16 or float16");
  return type;
}

// These own the converted tensors while their pointers are in use.
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

// Results are written to the caller's buffers: they are as large as the state,
// and allocating them in every step costs more than the work.
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

  template <typename T, typename Element = T>
  s3h::AccumulateProblem<T, Element> problem(bool cosine) const {
    return {cosine,
            data<Element>(features),
            pointer<int64_t>(labels),
            data<T>(prototypes),
            data<T>(masses),
            data<int64_t>(offsets),
            n,
            rows,
            classes,
            depth};
  }

  template <typename T>
  s3h::Accumulated<T> results(const Tensor& assignments) const {
    return {mutable_data<int64_t>(assignments),
            mutable_data<T>(sums),
            mutable_data<T>(counts),
            mutable_data<T>(distortions),
            mutable_data<T>(far_distances),
            mutable_data<T>(far_features)};
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

  template <typename T>
  s3h::State<T> state_pointers() const {
    return {mutable_data<T>(prototypes), mutable_data<T>(sums),
            mutable_data<T>(masses)};
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

  template <typename T>
  s3h::ApplyProblem<T> problem(const s3h::MovingAverage& average) const {
    return {average,
            data<int64_t>(offsets),
            rows,
            classes,
            depth,
            data<T>(batch_sums),
            data<T>(batch_counts),
            data<T>(distortions),
            data<T>(far_features)};
  }

  Tensor batch_sums, batch_counts, distortions, far_features;

 private:
  Tensor checked(const Tensor& tensor, int64_t count, int64_t width,
                 const char* name) const {
    return as_contiguous(state(tensor, device, type, count, width, name), type,
                         device);
  }
};

// Checks that the offsets rise from 0 to `rows`.
void check_offsets(const Tensor& offsets, int64_t rows) {
  const int64_t classes = offsets.size(0) - 1;
  const int64_t* at = data<int64_t>(offsets);
  STD_TORCH_CHECK(at[0] == 0 && at[classes] == rows,
                  "offsets must run from 0 to the number of prototypes, ", rows,
                  "; got ", at[0], " to ", at[classes]);
  for (int64_t c = 0; c < classes; ++c)
    STD_TORCH_CHECK(at[c] < at[c + 1], "offsets must rise: class ", c,
                    " has no row");
}

void check_labels(const SampleInputs& in, int64_t classes) {
  const int64_t* label = pointer<int64_t>(in.labels);
  for (int64_t i = 0; i < in.n; ++i)
    STD_TORCH_CHECK(label[i] < classes, "labels must be below ", classes,
                    ", the number of classes; labels[", i, "] is ", label[i]);
}

template <class Backend>
Tensor accumulate_prototypes(const Tensor& features, const Tensor& labels,
                             const Tensor& prototypes, const Tensor& masses,
                             const Tensor& offsets, const Tensor& sums,
                             const Tensor& counts, const Tensor& distortions,
                             const Tensor& far_distances,
                             const Tensor& far_features, bool cosine) {
  const AccumulateInputs in(features, labels, prototypes, masses, offsets, sums,
                            counts, distortions, far_distances, far_features);
  const Backend backend(in.device);
  const Tensor assignments = new_empty(*in.labels, {in.n}, ScalarType::Long);
  if constexpr (Backend::kCuda) {
    STD_TORCH_CHECK(in.depth > 0, "features must have a column");
    const s3h::cuda::AccumulateProblem problem{in.problem<void>(cosine),
                                               Backend::scalar(in.stored)};
    backend.run("accumulate_prototypes", in.features,
                s3h::cuda::accumulate_prototypes_workspace(problem),
                [&](void* workspace, s3h::cuda::Stream stream) {
                  return s3h::cuda::accumulate_prototypes(
                      problem, workspace, in.results<void>(assignments),
                      stream);
                });
  } else {
    check_offsets(in.offsets, in.rows);
    check_labels(in, in.classes);
    Backend::template with_types<Bfloat16, Float16>(
        in.stored, [&]<typename T, typename Element>() {
          s3h::cpu::accumulate_prototypes(in.problem<T, Element>(cosine),
                                          backend.threads(),
                                          in.results<T>(assignments));
        });
  }
  return assignments;
}

template <class Backend>
void apply_prototypes_(const Tensor& prototypes, const Tensor& sums,
                       const Tensor& masses, const Tensor& offsets,
                       const Tensor& batch_sums, const Tensor& batch_counts,
                       const Tensor& distortions, const Tensor& far_features,
                       double momentum, double expire_below, bool cosine) {
  const ApplyInputs in(prototypes, sums, masses, offsets, batch_sums,
                       batch_counts, distortions, far_features);
  const Backend backend(in.device);
  const s3h::MovingAverage average{cosine, momentum, expire_below};
  if constexpr (Backend::kCuda) {
    const s3h::cuda::ApplyProblem problem{in.problem<void>(average),
                                          in.type == ScalarType::Double};
    backend.run("apply_prototypes_", [&](s3h::cuda::Stream stream) {
      return s3h::cuda::apply_prototypes(
          problem, in.prototypes.mutable_data_ptr(), in.sums.mutable_data_ptr(),
          in.masses.mutable_data_ptr(), stream);
    });
  } else {
    check_offsets(in.offsets, in.rows);
    Backend::with_types(in.type, [&]<typename T, typename>() {
      s3h::cpu::apply_prototypes(in.problem<T>(average), backend.threads(),
                                 in.state_pointers<T>());
    });
  }
}

#if !defined(USE_CUDA)
Tensor update_prototypes_(const Tensor& features, const Tensor& labels,
                          const Tensor& prototypes, const Tensor& sums,
                          const Tensor& masses, const Tensor& offsets,
                          double momentum, double expire_below, bool cosine) {
  const SampleInputs batch(features, labels);
  const StateInputs in(prototypes, sums, masses, offsets);
  const Cpu backend(in.device);
  state(in.prototypes, batch.device, batch.type, in.rows, batch.depth,
        "prototypes");
  check_offsets(in.offsets, in.rows);
  check_labels(batch, in.classes);
  const Tensor assignments =
      new_empty(*batch.labels, {batch.n}, ScalarType::Long);
  Cpu::with_types<Bfloat16, Float16>(
      batch.stored, [&]<typename T, typename Element>() {
        s3h::cpu::update_prototypes<T, Element>(
            {{cosine, momentum, expire_below},
             data<Element>(batch.features),
             pointer<int64_t>(batch.labels),
             data<int64_t>(in.offsets),
             batch.n,
             in.rows,
             in.classes,
             in.depth},
            backend.threads(), in.state_pointers<T>(),
            mutable_data<int64_t>(assignments));
      });
  return assignments;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("accumulate_prototypes",
               TORCH_BOX(&accumulate_prototypes<LibraryBackend>));
  library.impl("apply_prototypes_",
               TORCH_BOX(&apply_prototypes_<LibraryBackend>));
}

#if !defined(USE_CUDA)  // CUDA uses the other two in sequence
STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("update_prototypes_", TORCH_BOX(&update_prototypes_));
}
#endif
