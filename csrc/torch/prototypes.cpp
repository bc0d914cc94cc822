// Registers the prototype kernels under the LibTorch stable ABI; the schemas
// live in s3h_ext/ops/prototypes.py.
#include "../cpu/prototypes.h"

#include "../cpu/float16.h"
#include "cpu_call.h"
#include "prototype_inputs.h"

namespace {

using namespace s3h::stable;
using s3h::cpu::Metric;

Metric metric_of(bool cosine) {
  return cosine ? Metric::kCosine : Metric::kEuclidean;
}

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
s3h::cpu::State<T> state_of(const StateInputs& in) {
  return {mutable_data<T>(in.prototypes), mutable_data<T>(in.sums),
          mutable_data<T>(in.masses)};
}

template <typename T>
s3h::cpu::MovingAverage<T> average_of(bool cosine, double momentum,
                                      double expire_below) {
  return {metric_of(cosine), static_cast<T>(momentum),
          static_cast<T>(expire_below)};
}

Tensor accumulate_prototypes(const Tensor& features, const Tensor& labels,
                             const Tensor& prototypes, const Tensor& masses,
                             const Tensor& offsets, const Tensor& sums,
                             const Tensor& counts, const Tensor& distortions,
                             const Tensor& far_distances,
                             const Tensor& far_features, bool cosine) {
  const AccumulateInputs in(features, labels, prototypes, masses, offsets, sums,
                            counts, distortions, far_distances, far_features);
  check_offsets(in.offsets, in.rows);
  check_labels(in, in.classes);
  const Tensor assignments =
      torch::stable::new_empty(*in.labels, {in.n}, ScalarType::Long);
  for_element(in.stored, [&]<typename T, typename Element>() {
    s3h::cpu::accumulate_prototypes<T, Element>(
        {metric_of(cosine), data<Element>(in.features),
         pointer<int64_t>(in.labels), data<T>(in.prototypes),
         data<T>(in.masses), data<int64_t>(in.offsets), in.n, in.classes,
         in.depth},
        torch_threads(),
        {mutable_data<int64_t>(assignments), mutable_data<T>(in.sums),
         mutable_data<T>(in.counts), mutable_data<T>(in.distortions),
         mutable_data<T>(in.far_distances), mutable_data<T>(in.far_features)});
  });
  return assignments;
}

template <typename T>
void apply_as(const ApplyInputs& in, double momentum, double expire_below,
              bool cosine) {
  s3h::cpu::apply_prototypes<T>(
      {average_of<T>(cosine, momentum, expire_below), data<int64_t>(in.offsets),
       in.classes, in.depth, data<T>(in.batch_sums), data<T>(in.batch_counts),
       data<T>(in.distortions), data<T>(in.far_features)},
      torch_threads(), state_of<T>(in));
}

void apply_prototypes_(const Tensor& prototypes, const Tensor& sums,
                       const Tensor& masses, const Tensor& offsets,
                       const Tensor& batch_sums, const Tensor& batch_counts,
                       const Tensor& distortions, const Tensor& far_features,
                       double momentum, double expire_below, bool cosine) {
  const ApplyInputs in(prototypes, sums, masses, offsets, batch_sums,
                       batch_counts, distortions, far_features);
  check_offsets(in.offsets, in.rows);
  const auto apply =
      in.type == ScalarType::Double ? &apply_as<double> : &apply_as<float>;
  apply(in, momentum, expire_below, cosine);
}

Tensor update_prototypes_(const Tensor& features, const Tensor& labels,
                          const Tensor& prototypes, const Tensor& sums,
                          const Tensor& masses, const Tensor& offsets,
                          double momentum, double expire_below, bool cosine) {
  const SampleInputs batch(features, labels);
  const StateInputs in(prototypes, sums, masses, offsets);
  state(in.prototypes, batch.device, batch.type, in.rows, batch.depth,
        "prototypes");
  check_offsets(in.offsets, in.rows);
  check_labels(batch, in.classes);
  const Tensor assignments =
      torch::stable::new_empty(*batch.labels, {batch.n}, ScalarType::Long);
  for_element(batch.stored, [&]<typename T, typename Element>() {
    s3h::cpu::update_prototypes<T, Element>(
        {average_of<T>(cosine, momentum, expire_below),
         data<Element>(batch.features), pointer<int64_t>(batch.labels),
         data<int64_t>(in.offsets), batch.n, in.classes, in.depth},
        torch_threads(), state_of<T>(in), mutable_data<int64_t>(assignments));
  });
  return assignments;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("accumulate_prototypes", TORCH_BOX(&accumulate_prototypes));
  library.impl("apply_prototypes_", TORCH_BOX(&apply_prototypes_));
  library.impl("update_prototypes_", TORCH_BOX(&update_prototypes_));
}
