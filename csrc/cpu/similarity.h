// Row-wise log-sum-exp over a similarity matrix that is never stored.
//
//   x_ij  = q_i . k_j / temperature + key_bias_j + [y_i = y_j] same_label_i
//   lse_i = log sum_{j not excluded} exp(x_ij)
//
// Does not depend on torch: plain pointers and sizes, and a parallel_for passed
// in. T is float or double, the type of the computation and of all vectors.
// Element is the type of the matrices: T, or Bfloat16 with float.
#pragma once

#include <cstdint>
#include <functional>

#include "../common/similarity_problem.h"
#include "threads.h"

namespace s3h::cpu {

// Adds to a row's gradient before it is stored; called by any thread.
template <typename T>
using RowFunction = std::function<void(int64_t row, T* gradient)>;

// The row-owned path: float64, simple, the same bits for any number of threads.
// lse: [n]; -inf for a row without any key.
void logsumexp_rows(const SimilarityProblem<double>& problem,
                    const Threads& threads, double* lse);

// grad, lse: [n]; grad_queries: [n, depth], grad_keys: [m, depth]; either may
// be nullptr. In the symmetric case grad_queries gets the gradient of both
// roles. `add`, if set, is called for every row of grad_queries.
void logsumexp_rows_backward(const SimilarityProblem<double>& problem,
                             const Threads& threads, const double* grad,
                             const double* lse, double* grad_queries,
                             double* grad_keys,
                             const RowFunction<double>& add = {});

// The tiled path: the same results in float, as fast as the CPU can. Same bits
// for the same number of threads; for any number with `deterministic`, which
// takes 1.5 times the work. Bfloat16 needs bfloat16_products().
//
// Results of the forward that the backward reads; nullptr if not needed.
struct TiledSums {
  // [n], lse / log 2, the unit of the scores. The backward subtracts it from
  // scores: if one key outweighs all others it equals the key's score to the
  // last bit, and otherwise it needs more precision than a float has.
  double* lse_log2;
  // [n]: the same over the keys with the row's own label, which are then left
  // out of all other sums; the backward is that of lse - own. Needs labels,
  // separate keys and no self_index, and excludes a same-label bias.
  double* own_log2 = nullptr;
  // [kept_scores()]: saves the backward from recomputing the scores, with the
  // same bits. Not with `deterministic`.
  float* kept = nullptr;
};

template <typename Element>
void logsumexp_tiled(const SimilarityProblem<float, Element>& problem,
                     const Threads& threads, bool deterministic,
                     const TiledSums& sums);

template <typename Element>
void logsumexp_tiled_backward(const SimilarityProblem<float, Element>& problem,
                              const Threads& threads, bool deterministic,
                              const float* grad, const TiledSums& sums,
                              Element* grad_queries, Element* grad_keys,
                              const RowFunction<float>& add = {});

// Divisible by every level's panel of rows.
constexpr int64_t kWidestPanel = 48;
// Floats before the kept scores, which describe their format.
constexpr int64_t kKeptHead = 16;

// Number of floats kept, the same on every CPU; s3h_ext/ops/_scores.py must
// agree.
inline int64_t kept_scores(int64_t n, int64_t m, bool symmetric) {
  const int64_t rows = (n + kWidestPanel - 1) / kWidestPanel;
  const int64_t columns = (m + kWidestPanel - 1) / kWidestPanel;
  const int64_t squares = symmetric ? rows * (rows + 1) / 2 : rows * columns;
  return kKeptHead + squares * kWidestPanel * kWidestPanel;
}

constexpr double kLn2 = 0.6931471805599453;

// Whether this CPU multiplies pairs of bfloat16.
bool bfloat16_products();

}  // namespace s3h::cpu
