// The arguments of the class-sum operations, the same on every device: checked
// for what memory safety needs, and brought to the kernels' layout.
#pragma once

#include "tensors.h"

namespace s3h::stable {

// Owns the converted tensors for as long as the pointers are in use.
struct ClassSumInputs {
  ClassSumInputs(ScalarType matrix_type, const Tensor& queries_in,
                 const OptionalTensor& keys_in, const Tensor& query_classes_in,
                 const OptionalTensor& key_classes_in, int64_t classes_in)
      : type(compute_type(queries_in)),
        matrix(matrix_type),
        device(queries_in.device()),
        classes(classes_in),
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
    STD_TORCH_CHECK(keys.has_value() == key_classes_in.has_value(),
                    "keys and key_classes go together");
    STD_TORCH_CHECK(classes >= 0, "num_classes must not be negative");
    query_classes = vector_of(query_classes_in, n, ScalarType::Long, device,
                              "query_classes");
    key_classes =
        vector_of(key_classes_in, m, ScalarType::Long, device, "key_classes");
  }

  ScalarType type;    // of the arithmetic and of every vector
  ScalarType matrix;  // of queries and keys
  Device device;
  int64_t classes;
  Tensor queries;
  int64_t n = 0, m = 0, depth = 0;
  OptionalTensor keys, query_classes, key_classes;
};

}  // namespace s3h::stable
