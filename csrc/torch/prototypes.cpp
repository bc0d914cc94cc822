// Registers the prototype kernels under the LibTorch stable ABI; the schemas
// live in s3h_ext/ops/prototypes.py.
#include "../cpu/prototypes.h"

#include <initializer_list>

#include "cpu_call.h"
#include "tensors.h"

namespace {

using namespace s3h::stable;
using s3h::cpu::Metric;

Metric metric_of(bool cosine) {
  return cosine ? Metric::kCosine : Metric::kEuclidean;
}

// Checks that the offsets rise from 0 to `rows`.
Tensor checked_offsets(const Tensor& offsets_in, int64_t rows) {
  STD_TORCH_CHECK(offsets_in.dim() == 1 && offsets_in.size(0) >= 1,
                  "offsets must be [C + 1]");
  const Tensor offsets = as_contiguous(offsets_in, ScalarType::Long);
  const int64_t classes = offsets.size(0) - 1;
  const int64_t* at = data<int64_t>(offsets);
  STD_TORCH_CHECK(at[0] == 0 && at[classes] == rows,
                  "offsets must run from 0 to the number of prototypes, ", rows,
                  "; got ", at[0], " to ", at[classes]);
  for (int64_t c = 0; c < classes; ++c)
    STD_TORCH_CHECK(at[c] < at[c + 1], "offsets must rise: class ", c,
                    " has no row");
  return offsets;
}

const Tensor& state(const Tensor& tensor, ScalarType type, int64_t rows,
                    int64_t depth, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), "every tensor must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name,
                  " must be float32, or float64 beside float64");
  const bool vector = depth < 0;
  STD_TORCH_CHECK(tensor.dim() == (vector ? 1 : 2) && tensor.size(0) == rows &&
                      (vector || tensor.size(1) == depth),
                  name, " does not have the shape of the state");
  return tensor;
}

void require_contiguous(std::initializer_list<Tensor> tensors,
                        const char* what) {
  for (const Tensor& tensor : tensors)
    STD_TORCH_CHECK(tensor.is_contiguous(), what, " must be contiguous");
}

// A checked batch.
struct Samples {
  Samples(const Tensor& features_in, const Tensor& labels_in, int64_t classes)
      : stored(features_in.scalar_type()) {
    STD_TORCH_CHECK(features_in.dim() == 2, "features must be [N, D]");
    STD_TORCH_CHECK(
        stored == ScalarType::Float || stored == ScalarType::Double ||
            stored == ScalarType::BFloat16 || stored == ScalarType::Half,
        "features must be float32, float64, bfloat16 or float16");
    type =
        stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    n = features_in.size(0);
    depth = features_in.size(1);
    features = as_contiguous(features_in, stored);
    labels = *vector_of(labels_in, n, ScalarType::Long, "labels");
    const int64_t* label = data<int64_t>(labels);
    for (int64_t i = 0; i < n; ++i)
      STD_TORCH_CHECK(label[i] < classes, "labels must be below ", classes,
                      ", the number of classes; labels[", i, "] is ", label[i]);
  }

  ScalarType stored;  // of the features
  ScalarType type;    // of the state
  int64_t n, depth;
  Tensor features, labels;
};

// Calls `body` with the types of the state and of the features.
template <typename Body>
void for_element(ScalarType stored, const Body& body) {
  if (stored == ScalarType::Double)
    body.template operator()<double, double>();
  else if (stored == ScalarType::BFloat16)
    body.template operator()<float, s3h::cpu::Bfloat16>();
  else if (stored == ScalarType::Half)
    body.template operator()<float, s3h::cpu::Float16>();
  else
    body.template operator()<float, float>();
}

template <typename T>
s3h::cpu::State<T> state_of(const Tensor& prototypes, const Tensor& sums,
                            const Tensor& masses) {
  return {mutable_data<T>(prototypes), mutable_data<T>(sums),
          mutable_data<T>(masses)};
}

template <typename T>
s3h::cpu::MovingAverage<T> average_of(bool cosine, double momentum,
                                      double expire_below) {
  return {metric_of(cosine), static_cast<T>(momentum),
          static_cast<T>(expire_below)};
}

// What apply and update change in place.
void check_state(const Tensor& prototypes, const Tensor& sums,
                 const Tensor& masses, ScalarType type, int64_t depth) {
  require_contiguous({prototypes, sums, masses}, "prototypes, sums and masses");
  const int64_t rows = prototypes.size(0);
  state(prototypes, type, rows, depth, "prototypes");
  state(sums, type, rows, depth, "sums");
  state(masses, type, rows, -1, "masses");
}

// The results are written into buffers of the caller's: they are as large as
// the state, and fresh memory for them in each step costs more than the work.
Tensor accumulate_prototypes(const Tensor& features_in, const Tensor& labels_in,
                             const Tensor& prototypes_in,
                             const Tensor& masses_in, const Tensor& offsets_in,
                             const Tensor& sums, const Tensor& counts,
                             const Tensor& far_distances,
                             const Tensor& far_features, bool cosine) {
  STD_TORCH_CHECK(prototypes_in.dim() == 2, "prototypes must be [S, D]");
  const int64_t rows = prototypes_in.size(0);
  const Tensor offsets = checked_offsets(offsets_in, rows);
  const int64_t classes = offsets.size(0) - 1;
  const Samples batch(features_in, labels_in, classes);
  const ScalarType type = batch.type;
  const int64_t depth = batch.depth;
  const Tensor prototypes = as_contiguous(
      state(prototypes_in, type, rows, depth, "prototypes"), type);
  const Tensor masses =
      as_contiguous(state(masses_in, type, rows, -1, "masses"), type);
  require_contiguous({sums, counts, far_distances, far_features}, "out");
  state(sums, type, rows, depth, "out.sums");
  state(counts, type, rows, -1, "out.counts");
  state(far_distances, type, classes, -1, "out.far_distances");
  state(far_features, type, classes, depth, "out.far_features");

  const Tensor assignments =
      torch::stable::new_empty(batch.labels, {batch.n}, ScalarType::Long);
  for_element(batch.stored, [&]<typename T, typename Element>() {
    s3h::cpu::accumulate_prototypes<T, Element>(
        {metric_of(cosine), data<Element>(batch.features),
         data<int64_t>(batch.labels), data<T>(prototypes), data<T>(masses),
         data<int64_t>(offsets), batch.n, classes, batch.depth},
        torch_threads(),
        {mutable_data<int64_t>(assignments), mutable_data<T>(sums),
         mutable_data<T>(counts), mutable_data<T>(far_distances),
         mutable_data<T>(far_features)});
  });
  return assignments;
}

template <typename T>
void apply_as(const Tensor& prototypes, const Tensor& sums,
              const Tensor& masses, const Tensor& offsets,
              const Tensor& batch_sums, const Tensor& batch_counts,
              const Tensor& far_distances, const Tensor& far_features,
              double momentum, double expire_below, bool cosine) {
  s3h::cpu::apply_prototypes<T>(
      {average_of<T>(cosine, momentum, expire_below), data<int64_t>(offsets),
       offsets.size(0) - 1, prototypes.size(1), data<T>(batch_sums),
       data<T>(batch_counts), data<T>(far_distances), data<T>(far_features)},
      torch_threads(), state_of<T>(prototypes, sums, masses));
}

void apply_prototypes_(const Tensor& prototypes, const Tensor& sums,
                       const Tensor& masses, const Tensor& offsets_in,
                       const Tensor& batch_sums_in,
                       const Tensor& batch_counts_in,
                       const Tensor& far_distances_in,
                       const Tensor& far_features_in, double momentum,
                       double expire_below, bool cosine) {
  STD_TORCH_CHECK(prototypes.dim() == 2, "prototypes must be [S, D]");
  const ScalarType type = prototypes.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "prototypes must be float32 or float64");
  const int64_t rows = prototypes.size(0), depth = prototypes.size(1);
  check_state(prototypes, sums, masses, type, depth);
  const Tensor offsets = checked_offsets(offsets_in, rows);
  const int64_t classes = offsets.size(0) - 1;
  const Tensor batch_sums = as_contiguous(
      state(batch_sums_in, type, rows, depth, "batch_sums"), type);
  const Tensor batch_counts = as_contiguous(
      state(batch_counts_in, type, rows, -1, "batch_counts"), type);
  const Tensor far_distances = as_contiguous(
      state(far_distances_in, type, classes, -1, "far_distances"), type);
  const Tensor far_features = as_contiguous(
      state(far_features_in, type, classes, depth, "far_features"), type);
  const auto apply =
      type == ScalarType::Double ? &apply_as<double> : &apply_as<float>;
  apply(prototypes, sums, masses, offsets, batch_sums, batch_counts,
        far_distances, far_features, momentum, expire_below, cosine);
}

Tensor update_prototypes_(const Tensor& features_in, const Tensor& labels_in,
                          const Tensor& prototypes, const Tensor& sums,
                          const Tensor& masses, const Tensor& offsets_in,
                          double momentum, double expire_below, bool cosine) {
  STD_TORCH_CHECK(prototypes.dim() == 2, "prototypes must be [S, D]");
  const Tensor offsets = checked_offsets(offsets_in, prototypes.size(0));
  const int64_t classes = offsets.size(0) - 1;
  const Samples batch(features_in, labels_in, classes);
  check_state(prototypes, sums, masses, batch.type, batch.depth);
  const Tensor assignments =
      torch::stable::new_empty(batch.labels, {batch.n}, ScalarType::Long);
  for_element(batch.stored, [&]<typename T, typename Element>() {
    s3h::cpu::update_prototypes<T, Element>(
        {average_of<T>(cosine, momentum, expire_below),
         data<Element>(batch.features), data<int64_t>(batch.labels),
         data<int64_t>(offsets), batch.n, classes, batch.depth},
        torch_threads(), state_of<T>(prototypes, sums, masses),
        mutable_data<int64_t>(assignments));
  });
  return assignments;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("accumulate_prototypes", TORCH_BOX(&accumulate_prototypes));
  library.impl("apply_prototypes_", TORCH_BOX(&apply_prototypes_));
  library.impl("update_prototypes_", TORCH_BOX(&update_prototypes_));
}
