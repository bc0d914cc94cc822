// torch's threads and types, in the form that the CPU kernels take.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "../cpu/bfloat16.h"
#include "../cpu/dispatch.h"
#include "../cpu/float16.h"
#include "../cpu/similarity.h"
#include "../cpu/threads.h"
#include "tensors.h"

namespace s3h::stable {

class Cpu {
 public:
  static constexpr bool kCuda = false;

  explicit Cpu(const Device& device) {
    STD_TORCH_CHECK(device.type() == torch::headeronly::DeviceType::CPU,
                    "every tensor must be on the CPU");
    // Here, because an error inside parallel_for loses its message.
    cpu::dispatch_level();
  }

  cpu::Threads threads() const {
    const int64_t count = torch::stable::get_num_threads();
    return {count, [count](int64_t begin, int64_t end,
                           const cpu::RangeFunction& body) {
              const int64_t grain = std::max<int64_t>(
                  1, (end - begin + count - 1) / std::max<int64_t>(1, count));
              torch::stable::parallel_for(begin, end, grain, body);
            }};
  }

  // The matrix type of the similarity kernels.
  static ScalarType similarity_type(const Tensor& queries) {
    const bool pairs = queries.scalar_type() == ScalarType::BFloat16 &&
                       cpu::bfloat16_products();
    return pairs ? ScalarType::BFloat16 : compute_type(queries);
  }

  // Number of scores that a forward keeps for its backward.
  static int64_t score_count(bool keep, ScalarType type, bool deterministic,
                             int64_t n, int64_t m, bool symmetric) {
    if (!keep) return 0;
    STD_TORCH_CHECK(type == ScalarType::Float && !deterministic,
                    "keep_scores is for sums in float32 that need not be "
                    "deterministic");
    return cpu::kept_scores(n, m, symmetric);
  }

  // The matrix type of the class sums.
  static ScalarType class_sums_type(const Tensor& queries) {
    return compute_type(queries);
  }

  // Calls `body` with the types of the computation and of the matrices: float64
  // for both, or float32 with itself or one of the 16-bit types named.
  template <typename... Halves, typename Body>
  static void with_types(ScalarType type, const Body& body) {
    using cpu::Bfloat16, cpu::Float16;
    if (type == ScalarType::Double)
      return body.template operator()<double, double>();
    if constexpr ((std::is_same_v<Halves, Bfloat16> || ...))
      if (type == ScalarType::BFloat16)
        return body.template operator()<float, Bfloat16>();
    if constexpr ((std::is_same_v<Halves, Float16> || ...))
      if (type == ScalarType::Half)
        return body.template operator()<float, Float16>();
    body.template operator()<float, float>();
  }
};

}  // namespace s3h::stable
