// The row-owned path: float64.
//
// A task owns a range of output rows and traverses the other side in tiles of
// kTile rows, always in the same order, so an output row has the same bits for
// any number of threads. A tile is transposed once per task to [depth][kTile]:
// the dot products then run over contiguous lanes and keep their summation
// order under vectorisation. The forward keeps a running maximum; the backward
// recomputes the scores and needs none, because x - lse <= 0. Gradients of
// queries and of keys are two separate sweeps.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "run_ranges.h"
#include "similarity.h"

namespace s3h::cpu {
namespace {

constexpr int64_t kTile = 64;

// One row of scores against one tile, from either side.
class Scores {
 public:
  explicit Scores(const SimilarityProblem<double>& p)
      : p_(p),
        symmetric_(p.symmetric),
        keys_(symmetric_ ? p.queries : p.keys),
        key_labels_(symmetric_ ? p.query_labels : p.key_labels),
        inverse_(1.0 / p.temperature) {}

  const double* keys() const { return keys_; }
  double inverse_temperature() const { return inverse_; }

  // x_ij from the plain dot product; -inf if the pair is excluded.
  double finish(int64_t i, int64_t j, double dot) const {
    const double excluded = -std::numeric_limits<double>::infinity();
    if (symmetric_ ? i == j : p_.self_index != nullptr && p_.self_index[i] == j)
      return excluded;
    double x = dot * inverse_;
    if (p_.key_bias != nullptr) x += p_.key_bias[j];
    if (p_.query_labels != nullptr && p_.query_labels[i] >= 0 &&
        p_.query_labels[i] == key_labels_[j])
      x += p_.same_label_bias != nullptr ? p_.same_label_bias[i]
                                         : p_.same_label_value;
    return x;
  }

 private:
  const SimilarityProblem<double>& p_;
  bool symmetric_;
  const double* keys_;
  const int64_t* key_labels_;
  double inverse_;
};

// Copies rows [begin, begin + count) of a [rows, depth] matrix to
// tile[depth][kTile].
void transpose_tile(const double* rows, int64_t begin, int64_t count,
                    int64_t depth, double* tile) {
  for (int64_t r = 0; r < count; ++r) {
    const double* row = rows + (begin + r) * depth;
    for (int64_t d = 0; d < depth; ++d) tile[d * kTile + r] = row[d];
  }
}

// dots[r] = row . (row r of the tile); unused lanes are arbitrary.
void tile_dots(const double* row, const double* tile, int64_t depth,
               double* dots) {
  std::fill(dots, dots + kTile, 0.0);
  for (int64_t d = 0; d < depth; ++d) {
    const double value = row[d];
    const double* lane = tile + d * kTile;
    for (int64_t r = 0; r < kTile; ++r) dots[r] += value * lane[r];
  }
}

// Adds one side's gradient: out[own] += sum_other p(i, j) * others[other],
// where own is the query (OwnerIsQuery) or the key.
template <bool OwnerIsQuery>
void backward_sweep(const SimilarityProblem<double>& p, const Scores& scores,
                    const Threads& threads, const double* grad,
                    const double* lse, double* out) {
  const double* own = OwnerIsQuery ? p.queries : scores.keys();
  const double* others = OwnerIsQuery ? scores.keys() : p.queries;
  const int64_t own_count = OwnerIsQuery ? p.n : p.m;
  const int64_t other_count = OwnerIsQuery ? p.m : p.n;
  const double empty = -std::numeric_limits<double>::infinity();

  run_ranges(threads, own_count, false, [&](int64_t begin, int64_t end) {
    std::vector<double> tile(static_cast<size_t>(p.depth * kTile));
    double dots[kTile];
    for (int64_t start = 0; start < other_count; start += kTile) {
      const int64_t count = std::min(kTile, other_count - start);
      transpose_tile(others, start, count, p.depth, tile.data());
      for (int64_t o = begin; o < end; ++o) {
        double* target = out + o * p.depth;
        tile_dots(own + o * p.depth, tile.data(), p.depth, dots);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t i = OwnerIsQuery ? o : start + r;
          const int64_t j = OwnerIsQuery ? start + r : o;
          const double x = scores.finish(i, j, dots[r]);
          // An excluded pair, or an empty row: no gradient.
          if (x == empty || lse[i] == empty) continue;
          const double weight = grad[i] * std::exp(std::min(x - lse[i], 0.0)) *
                                scores.inverse_temperature();
          const double* other = others + (start + r) * p.depth;
          for (int64_t d = 0; d < p.depth; ++d) target[d] += weight * other[d];
        }
      }
    }
  });
}

}  // namespace

void logsumexp_rows(const SimilarityProblem<double>& p, const Threads& threads,
                    double* lse) {
  const Scores scores(p);
  const double lowest = -std::numeric_limits<double>::infinity();
  run_ranges(threads, p.n, false, [&](int64_t begin, int64_t end) {
    std::vector<double> tile(static_cast<size_t>(p.depth * kTile));
    std::vector<double> maxima(static_cast<size_t>(end - begin), lowest);
    std::vector<double> sums(static_cast<size_t>(end - begin), 0.0);
    double x[kTile];
    for (int64_t start = 0; start < p.m; start += kTile) {
      const int64_t count = std::min(kTile, p.m - start);
      transpose_tile(scores.keys(), start, count, p.depth, tile.data());
      for (int64_t i = begin; i < end; ++i) {
        tile_dots(p.queries + i * p.depth, tile.data(), p.depth, x);
        double& maximum = maxima[static_cast<size_t>(i - begin)];
        double& sum = sums[static_cast<size_t>(i - begin)];
        double top = maximum;
        for (int64_t r = 0; r < count; ++r) {
          x[r] = scores.finish(i, start + r, x[r]);
          top = std::max(top, x[r]);
        }
        double added = 0;
        for (int64_t r = 0; r < count; ++r)
          // A difference of equal infinities would be NaN, so skip -inf here
          // and handle +inf at the end.
          if (x[r] != lowest) added += std::exp(x[r] - top);
        if (maximum != lowest) sum *= std::exp(maximum - top);
        sum += added;
        maximum = top;
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const double maximum = maxima[static_cast<size_t>(i - begin)];
      const double sum = sums[static_cast<size_t>(i - begin)];
      const bool infinite = maximum == std::numeric_limits<double>::infinity();
      lse[i] = infinite ? maximum : maximum + std::log(sum);
      // A NaN score never becomes the maximum but always reaches the sum.
      if (std::isnan(sum) && !infinite) lse[i] = sum;
    }
  });
}

void logsumexp_rows_backward(const SimilarityProblem<double>& p,
                             const Threads& threads, const double* grad,
                             const double* lse, double* grad_queries,
                             double* grad_keys,
                             const RowFunction<double>& add) {
  const Scores scores(p);
  if (grad_queries != nullptr) {
    std::fill(grad_queries, grad_queries + p.n * p.depth, 0.0);
    backward_sweep<true>(p, scores, threads, grad, lse, grad_queries);
    if (p.symmetric)
      backward_sweep<false>(p, scores, threads, grad, lse, grad_queries);
    if (add)
      run_ranges(threads, p.n, false, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          add(i, grad_queries + i * p.depth);
      });
  }
  if (grad_keys != nullptr && !p.symmetric) {
    std::fill(grad_keys, grad_keys + p.m * p.depth, 0.0);
    backward_sweep<false>(p, scores, threads, grad, lse, grad_keys);
  }
}

}  // namespace s3h::cpu
