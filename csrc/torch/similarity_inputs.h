// The arguments of the similarity operations, the same on every device: checked
// for what memory safety needs, and brought to the kernels' layout.
#pragma once

#include "tensors.h"

namespace s3h::stable {

// Owns the converted tensors for as long as their pointers are in use.
struct SimilarityInputs {
  SimilarityInputs(ScalarType matrix_type, const Tensor& queries_in,
                   const OptionalTensor& keys_in, double temperature_in,
                   const OptionalTensor& key_bias_in,
                   const OptionalTensor& query_labels_in,
                   const OptionalTensor& key_labels_in,
                   const OptionalTensor& same_label_bias_in,
                   double same_label_value_in,
                   const OptionalTensor& self_index_in)
      : type(compute_type(queries_in)),
        matrix(matrix_type),
        device(queries_in.device()),
        temperature(temperature_in),
        same_label_value(same_label_value_in),
        queries(as_contiguous(queries_in, matrix, device)) {
    STD_TORCH_CHECK(queries.dim() == 2, "queries must be [N, D], got ",
                    shape_of(queries));
    n = queries.size(0);
    depth = queries.size(1);
    m = n;
    if (keys_in.has_value()) {
      keys = as_contiguous(*keys_in, matrix, device);
      STD_TORCH_CHECK(keys->dim() == 2 && keys->size(1) == depth,
                      "keys must be [M, D] with the queries' D");
      m = keys->size(0);
    }
    STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
    STD_TORCH_CHECK(!keys.has_value() || query_labels_in.has_value() ==
                                             key_labels_in.has_value(),
                    "query_labels and key_labels go together");
    constexpr auto integer = ScalarType::Long;
    key_bias = vector_of(key_bias_in, m, type, device, "key_bias");
    query_labels =
        vector_of(query_labels_in, n, integer, device, "query_labels");
    key_labels = vector_of(key_labels_in, m, integer, device, "key_labels");
    same_label_bias =
        vector_of(same_label_bias_in, n, type, device, "same_label_bias");
    self_index = vector_of(self_index_in, n, integer, device, "self_index");
  }

  ScalarType type;    // of the arithmetic and of every vector
  ScalarType matrix;  // of queries and keys
  Device device;
  double temperature;
  double same_label_value;
  Tensor queries;
  int64_t n = 0, m = 0, depth = 0;
  OptionalTensor keys, key_bias, query_labels, key_labels, same_label_bias,
      self_index;
};

}  // namespace s3h::stable
