// Registers the prototype kernels under the LibTorch stable ABI; the schemas
// live in s3h_ext/ops/prototypes.py.
#include "../cpu/prototypes.h"

#include "prototype_inputs.h"
#include "threads.h"

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

Tensor accumulate_prototypes(const Tensor& features, const Tensor& labels,
                             const Tensor& prototypes, const Tensor& masses,
                             const Tensor& offsets, const Tensor& sums,
                             const Tensor& counts, const Tensor& far_distances,
                             const Tensor& far_features, bool cosine) {
  const AccumulateInputs in(features, labels, prototypes, masses, offsets, sums,
                            counts, far_distances, far_features);
  check_offsets(in.offsets, in.rows);
  const int64_t* label = pointer<int64_t>(in.labels);
  for (int64_t i = 0; i < in.n; ++i)
    STD_TORCH_CHECK(label[i] < in.classes, "labels must be below ", in.classes,
                    ", the number of classes; labels[", i, "] is ", label[i]);

  const Tensor assignments =
      torch::stable::new_empty(*in.labels, {in.n}, ScalarType::Long);
  const auto call = [&]<typename T, typename Element>() {
    s3h::cpu::accumulate_prototypes<T, Element>(
        {metric_of(cosine), data<Element>(in.features), label,
         data<T>(in.prototypes), data<T>(in.masses), data<int64_t>(in.offsets),
         in.n, in.classes, in.depth},
        torch_threads(),
        {mutable_data<int64_t>(assignments), mutable_data<T>(in.sums),
         mutable_data<T>(in.counts), mutable_data<T>(in.far_distances),
         mutable_data<T>(in.far_features)});
  };
  if (in.stored == ScalarType::Double)
    call.operator()<double, double>();
  else if (in.stored == ScalarType::BFloat16)
    call.operator()<float, s3h::cpu::Bfloat16>();
  else if (in.stored == ScalarType::Half)
    call.operator()<float, s3h::cpu::Float16>();
  else
    call.operator()<float, float>();
  return assignments;
}

template <typename T>
void apply_as(const ApplyInputs& in, double momentum, double expire_below,
              bool cosine) {
  s3h::cpu::apply_prototypes<T>(
      {metric_of(cosine), static_cast<T>(momentum),
       static_cast<T>(expire_below), data<int64_t>(in.offsets), in.classes,
       in.depth, data<T>(in.batch_sums), data<T>(in.batch_counts),
       data<T>(in.far_distances), data<T>(in.far_features)},
      torch_threads(), mutable_data<T>(in.prototypes), mutable_data<T>(in.sums),
      mutable_data<T>(in.masses));
}

void apply_prototypes_(const Tensor& prototypes, const Tensor& sums,
                       const Tensor& masses, const Tensor& offsets,
                       const Tensor& batch_sums, const Tensor& batch_counts,
                       const Tensor& far_distances, const Tensor& far_features,
                       double momentum, double expire_below, bool cosine) {
  const ApplyInputs in(prototypes, sums, masses, offsets, batch_sums,
                       batch_counts, far_distances, far_features);
  check_offsets(in.offsets, in.rows);
  const auto apply =
      in.type == ScalarType::Double ? &apply_as<double> : &apply_as<float>;
  apply(in, momentum, expire_below, cosine);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("accumulate_prototypes", TORCH_BOX(&accumulate_prototypes));
  library.impl("apply_prototypes_", TORCH_BOX(&apply_prototypes_));
}
