// The operands of a tile unit: every layout is built from the rows' pairs.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "similarity_engine.h"

namespace s3h::cpu {

// Row-major pairs of each part, zero-padded to whole panels and steps.
template <typename Element>
void Engine<Element>::take_rows(const Side& side, float* longest) {
  const int64_t part = side.panels * k_.panel * steps_;
  run(side.panels, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      longest[panel] = 0;
      for (int64_t r = panel * k_.panel; r < (panel + 1) * k_.panel; ++r) {
        float* to = memory_.at<float>(side.row_major) + r * steps_;
        if (r >= side.count) {
          for (int64_t p = 0; p < parts_; ++p)
            std::fill_n(to + p * part, steps_, 0.0f);
          continue;
        }
        const Element* row = side.matrix + r * p_.depth;
        if constexpr (std::is_same_v<Element, float>)
          keep_larger(longest[panel],
                      k_.take_floats(row, p_.depth, steps_, to, part));
        else
          keep_larger(longest[panel], k_.take_pairs(row, p_.depth, steps_, to));
      }
    }
  });
}

// Whether the parts of floats represent all of them: not NaN or infinity, nor
// if the smallest part of a side's largest numbers is denormal.
template <typename Element>
bool Engine<Element>::splits() const {
  constexpr float kLeast = 0x1p-100f, kMost = 0x1p100f;
  if (parts_ == 1) return true;
  const auto fits = [&](const float* longest, int64_t panels) {
    float top = 0;
    for (int64_t i = 0; i < panels; ++i) keep_larger(top, longest[i]);
    return top >= kLeast && top <= kMost;
  };
  return fits(longest_.data(), row_.panels) &&
         (p_.symmetric || fits(longest_.data() + row_.panels, column_.panels));
}

template <typename Element>
void Engine<Element>::make_panels(const Side& side) {
  const int64_t part = side.panels * k_.panel * steps_;
  run(parts_ * side.panels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first =
          i / side.panels * part + i % side.panels * k_.panel * steps_;
      for (int64_t r = 0; r < k_.panel; r += kTileUnit)
        for (int64_t s = 0; s < steps_; s += kTileUnit)
          k_.turn(memory_.at<float>(side.row_major) + first + r * steps_ + s,
                  steps_,
                  memory_.at<float>(side.packed) + first + s * k_.panel + r,
                  k_.panel);
    }
  });
}

// The operands of `apply`: pairs of rows, and their transpose for the columns'
// gradient.
template <typename Element>
void Engine<Element>::make_pairs(const Side& side) {
  const int64_t rows = pair_rows(side), ld = turned_ld(rows);
  const int64_t groups = rows / kTileUnit;
  const int64_t there = side.panels * k_.panel / 2;
  run(parts_ * groups, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i / groups, first = i % groups * kTileUnit;
      const float* from = memory_.at<float>(side.row_major) +
                          part * side.panels * k_.panel * steps_;
      float* to = memory_.at<float>(side.rows) + part * rows * width_;
      for (int64_t r = first; r < first + kTileUnit; ++r)
        if (r < there)
          k_.pair_rows(from + 2 * r * steps_, from + (2 * r + 1) * steps_,
                       width_, to + r * width_);
        else
          std::fill_n(to + r * width_, width_, 0.0f);
      if (side.turned == 0) continue;
      float* turned =
          memory_.at<float>(side.turned) + part * width_ * ld + first;
      for (int64_t d = 0; d < width_; d += kTileUnit)
        k_.turn(to + first * width_ + d, width_, turned + d * ld, ld);
    }
  });
}

#define S3H_INSTANTIATE(Element)                                 \
  template void Engine<Element>::take_rows(const Side&, float*); \
  template bool Engine<Element>::splits() const;                 \
  template void Engine<Element>::make_panels(const Side&);       \
  template void Engine<Element>::make_pairs(const Side&);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
