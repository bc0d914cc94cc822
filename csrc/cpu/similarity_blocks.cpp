#include "similarity_blocks.h"

#include <algorithm>

namespace s3h::cpu {

Pieces triangle(int64_t panels, int64_t block, int64_t columns, int64_t tasks,
                double diagonal_cost) {
  std::vector<Block> all;
  std::vector<double> until;
  double total = 0;
  const auto add = [&](Range rows, Range across) {
    for (int64_t j = across.first; j < across.last; j += columns) {
      const int64_t last = std::min(j + columns, across.last);
      all.push_back({rows, {j, last}});
      total += static_cast<double>((rows.last - rows.first) * (last - j)) *
               (rows.first == j ? diagonal_cost : 1.0);
      until.push_back(total);
    }
  };
  for (int64_t i = 0; i < panels; i += block) {
    const int64_t last = std::min(i + block, panels);
    for (int64_t p = i; p < last; ++p) {
      add({p, p + 1}, {p, p + 1});
      add({p, p + 1}, {p + 1, last});
    }
    add({i, last}, {last, panels});
  }
  Pieces pieces(static_cast<size_t>(tasks));
  for (size_t b = 0; b < all.size(); ++b) {
    const double middle = b == 0 ? until[0] / 2 : (until[b - 1] + until[b]) / 2;
    const auto piece =
        static_cast<size_t>(middle / total * static_cast<double>(tasks));
    pieces[std::min(piece, pieces.size() - 1)].push_back(all[b]);
  }
  return pieces;
}

Pieces rectangle(int64_t row_panels, int64_t column_panels, int64_t block,
                 int64_t tasks, int64_t unit, bool by_columns) {
  const int64_t cut = by_columns ? column_panels : row_panels;
  const int64_t other = by_columns ? row_panels : column_panels;
  const int64_t units = (cut + unit - 1) / unit;
  Pieces pieces(static_cast<size_t>(tasks));
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t last = std::min(units * (t + 1) / tasks * unit, cut);
    for (int64_t i = units * t / tasks * unit; i < last; i += block)
      for (int64_t j = 0; j < other; j += block) {
        const Range outer{i, std::min(i + block, last)};
        const Range inner{j, std::min(j + block, other)};
        pieces[static_cast<size_t>(t)].push_back(
            by_columns ? Block{inner, outer} : Block{outer, inner});
      }
  }
  return pieces;
}

}  // namespace s3h::cpu
