// torch's threads and types as the CPU kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../cpu/bfloat16.h"
#include "../cpu/dispatch.h"
#include "../cpu/similarity.h"
#include "../cpu/threads.h"
#include "tensors.h"

namespace s3h::stable {

inline cpu::Threads torch_threads() {
  // Here, for an error inside of parallel_for loses its message.
  cpu::dispatch_level();
  const int64_t count = torch::stable::get_num_threads();
  return {count,
          [count](int64_t begin, int64_t end, const cpu::RangeFunction& body) {
            const int64_t grain = std::max<int64_t>(
                1, (end - begin + count - 1) / std::max<int64_t>(1, count));
            torch::stable::parallel_for(begin, end, grain, body);
          }};
}

// The type that matrices are handed over to the similarity kernels in.
inline ScalarType cpu_matrix_type(const Tensor& queries) {
  if (queries.scalar_type() == ScalarType::BFloat16 && cpu::bfloat16_products())
    return ScalarType::BFloat16;
  return compute_type(queries);
}

}  // namespace s3h::stable
