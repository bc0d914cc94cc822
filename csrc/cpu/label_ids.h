// Maps 64-bit labels to 32-bit ids, which vectors can compare.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace s3h::cpu {

// Equal labels on both sides get the same id. Wide labels are renumbered.
class LabelIds {
 public:
  LabelIds(const int64_t* a, int64_t a_count, const int64_t* b,
           int64_t b_count) {
    const auto wide = [](int64_t label) { return label > kMax; };
    if (std::none_of(a, a + a_count, wide) ||
        std::none_of(b, b + b_count, wide))
      return;
    known_.assign(a, a + a_count);
    std::sort(known_.begin(), known_.end());
    known_.erase(std::unique(known_.begin(), known_.end()), known_.end());
  }

  // `none` stands for a label without a match on the other side.
  int32_t id(int64_t label, int32_t none) const {
    if (label < 0) return none;
    if (known_.empty())
      return label > kMax ? none : static_cast<int32_t>(label);
    const auto found = std::lower_bound(known_.begin(), known_.end(), label);
    return found != known_.end() && *found == label
               ? static_cast<int32_t>(found - known_.begin())
               : none;
  }

 private:
  static constexpr int64_t kMax = std::numeric_limits<int32_t>::max();

  std::vector<int64_t> known_;
};

}  // namespace s3h::cpu
