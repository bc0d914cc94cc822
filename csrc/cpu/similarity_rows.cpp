// The row-owned path: float64.
//
// A task owns a range of output rows and walks the other side in tiles of
// kTile rows, always in the same order, so an output row has the same bits
// whatever the number of threads. A tile is transposed once per task to
// [depth][kTile]: the dot products then run over contiguous lanes and keep
// their summation order under vectorisation. The forward keeps a running
// maximum; the backward recomputes the scores and needs none, because
// x - lse <= 0. Gradients of queries and of keys are two separate sweeps.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "similarity.h"

namespace s3h::cpu {
namespace {

constexpr int64_t kTile = 64;

// One row of scores against one tile, seen from either side.
template <typename T>
class Scores {
 public:
  explicit Scores(const SimilarityProblem<T>& p)
      : p_(p),
        symmetric_(p.symmetric),
        keys_(symmetric_ ? p.queries : p.keys),
        key_labels_(symmetric_ ? p.query_labels : p.key_labels),
        inverse_(static_cast<T>(1.0 / p.temperature)) {}

  const T* keys() const { return keys_; }
  T inverse_temperature() const { return inverse_; }

  // x_ij from the plain dot product; -inf where the pair is excluded.
  T finish(int64_t i, int64_t j, T dot) const {
    const T excluded = -std::numeric_limits<T>::infinity();
    if (symmetric_ ? i == j : p_.self_index != nullptr && p_.self_index[i] == j)
      return excluded;
    T x = dot * inverse_;
    if (p_.key_bias != nullptr) x += p_.key_bias[j];
    if (p_.query_labels != nullptr && p_.query_labels[i] >= 0 &&
        p_.query_labels[i] == key_labels_[j])
      x += p_.same_label_bias != nullptr ? p_.same_label_bias[i]
                                         : static_cast<T>(p_.same_label_value);
    return x;
  }

 private:
  const SimilarityProblem<T>& p_;
  bool symmetric_;
  const T* keys_;
  const int64_t* key_labels_;
  T inverse_;
};

// Copies rows [begin, begin + count) of a [rows, depth] matrix to
// tile[depth][kTile].
template <typename T>
void transpose_tile(const T* rows, int64_t begin, int64_t count, int64_t depth,
                    T* tile) {
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + (begin + r) * depth;
    for (int64_t d = 0; d < depth; ++d) tile[d * kTile + r] = row[d];
  }
}

// dots[r] = row . (row r of the tile); unused lanes hold whatever they hold.
template <typename T>
void tile_dots(const T* row, const T* tile, int64_t depth, T* dots) {
  std::fill(dots, dots + kTile, T(0));
  for (int64_t d = 0; d < depth; ++d) {
    const T value = row[d];
    const T* lane = tile + d * kTile;
    for (int64_t r = 0; r < kTile; ++r) dots[r] += value * lane[r];
  }
}

// Adds one side's gradient: out[own] += sum_other p(i, j) * others[other],
// where own is the query (OwnerIsQuery) or the key.
template <bool OwnerIsQuery, typename T>
void backward_sweep(const SimilarityProblem<T>& p, const Scores<T>& scores,
                    const Threads& threads, const T* grad, const T* lse,
                    T* out) {
  const T* own = OwnerIsQuery ? p.queries : scores.keys();
  const T* others = OwnerIsQuery ? scores.keys() : p.queries;
  const int64_t own_count = OwnerIsQuery ? p.n : p.m;
  const int64_t other_count = OwnerIsQuery ? p.m : p.n;
  const T empty = -std::numeric_limits<T>::infinity();

  threads.parallel_for(0, own_count, [&](int64_t begin, int64_t end) {
    std::vector<T> tile(static_cast<size_t>(p.depth * kTile));
    T dots[kTile];
    for (int64_t start = 0; start < other_count; start += kTile) {
      const int64_t count = std::min(kTile, other_count - start);
      transpose_tile(others, start, count, p.depth, tile.data());
      for (int64_t o = begin; o < end; ++o) {
        T* target = out + o * p.depth;
        tile_dots(own + o * p.depth, tile.data(), p.depth, dots);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t i = OwnerIsQuery ? o : start + r;
          const int64_t j = OwnerIsQuery ? start + r : o;
          const T x = scores.finish(i, j, dots[r]);
          // An excluded pair, or a row with nothing in it: no gradient.
          if (x == empty || lse[i] == empty) continue;
          const T weight =
              grad[i] * std::exp(x - lse[i]) * scores.inverse_temperature();
          const T* other = others + (start + r) * p.depth;
          for (int64_t d = 0; d < p.depth; ++d) target[d] += weight * other[d];
        }
      }
    }
  });
}

}  // namespace

template <typename T>
void logsumexp_rows(const SimilarityProblem<T>& p, const Threads& threads,
                    T* lse) {
  const Scores<T> scores(p);
  const T lowest = -std::numeric_limits<T>::infinity();
  threads.parallel_for(0, p.n, [&](int64_t begin, int64_t end) {
    std::vector<T> tile(static_cast<size_t>(p.depth * kTile));
    std::vector<T> maxima(static_cast<size_t>(end - begin), lowest);
    std::vector<T> sums(static_cast<size_t>(end - begin), T(0));
    T x[kTile];
    for (int64_t start = 0; start < p.m; start += kTile) {
      const int64_t count = std::min(kTile, p.m - start);
      transpose_tile(scores.keys(), start, count, p.depth, tile.data());
      for (int64_t i = begin; i < end; ++i) {
        tile_dots(p.queries + i * p.depth, tile.data(), p.depth, x);
        T& maximum = maxima[static_cast<size_t>(i - begin)];
        T& sum = sums[static_cast<size_t>(i - begin)];
        T top = maximum;
        for (int64_t r = 0; r < count; ++r) {
          x[r] = scores.finish(i, start + r, x[r]);
          top = std::max(top, x[r]);
        }
        T added = 0;
        for (int64_t r = 0; r < count; ++r)
          // A difference of equal infinities would be NaN, so -inf is skipped
          // and +inf is settled at the end.
          if (x[r] != lowest) added += std::exp(x[r] - top);
        if (maximum != lowest) sum *= std::exp(maximum - top);
        sum += added;
        maximum = top;
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const T maximum = maxima[static_cast<size_t>(i - begin)];
      const T sum = sums[static_cast<size_t>(i - begin)];
      const bool infinite = maximum == std::numeric_limits<T>::infinity();
      lse[i] = infinite ? maximum : maximum + std::log(sum);
      // A NaN score never becomes the maximum but always reaches the sum.
      if (std::isnan(sum) && !infinite) lse[i] = sum;
    }
  });
}

template <typename T>
void logsumexp_rows_backward(const SimilarityProblem<T>& p,
                             const Threads& threads, const T* grad,
                             const T* lse, T* grad_queries, T* grad_keys,
                             const RowFunction<T>& add) {
  const Scores<T> scores(p);
  if (grad_queries != nullptr) {
    std::fill(grad_queries, grad_queries + p.n * p.depth, T(0));
    backward_sweep<true>(p, scores, threads, grad, lse, grad_queries);
    if (p.symmetric)
      backward_sweep<false>(p, scores, threads, grad, lse, grad_queries);
    if (add)
      threads.parallel_for(0, p.n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          add(i, grad_queries + i * p.depth);
      });
  }
  if (grad_keys != nullptr && !p.symmetric) {
    std::fill(grad_keys, grad_keys + p.m * p.depth, T(0));
    backward_sweep<false>(p, scores, threads, grad, lse, grad_keys);
  }
}

template void logsumexp_rows<float>(const SimilarityProblem<float>&,
                                    const Threads&, float*);
template void logsumexp_rows<double>(const SimilarityProblem<double>&,
                                     const Threads&, double*);
template void logsumexp_rows_backward<float>(const SimilarityProblem<float>&,
                                             const Threads&, const float*,
                                             const float*, float*, float*,
                                             const RowFunction<float>&);
template void logsumexp_rows_backward<double>(const SimilarityProblem<double>&,
                                              const Threads&, const double*,
                                              const double*, double*, double*,
                                              const RowFunction<double>&);

}  // namespace s3h::cpu
