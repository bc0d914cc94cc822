// Row-wise log-sum-exp over a similarity matrix that is never stored.
//
//   x_ij  = q_i . k_j / temperature + key_bias_j + [y_i = y_j] same_label_i
//   lse_i = log sum_{j not excluded} exp(x_ij)
//
// No torch in here: plain pointers and sizes, and a parallel_for handed in.
// T is float or double: the type of the arithmetic and of all vectors. Element
// is the matrices' type: T, or Bfloat16 beside float.
#pragma once

#include <cstdint>
#include <functional>

#include "../common/similarity_problem.h"
#include "threads.h"

namespace s3h::cpu {

// Adds to a row's gradient before it is stored; called by any thread.
template <typename T>
using RowFunction = std::function<void(int64_t row, T* gradient)>;

// The row-owned path: float64, simple, the same bits for any thread count.
// lse: [n]. A row without any key gets -inf.
void logsumexp_rows(const SimilarityProblem<double>& problem,
                    const Threads& threads, double* lse);

// grad, lse: [n]; grad_queries: [n, depth], grad_keys: [m, depth], either may
// be nullptr. In the symmetric case grad_queries takes both roles' gradient.
// `add`, where there is one, is called for every row of grad_queries.
void logsumexp_rows_backward(const SimilarityProblem<double>& problem,
                             const Threads& threads, const double* grad,
                             const double* lse, double* grad_queries,
                             double* grad_keys,
                             const RowFunction<double>& add = {});

// The tiled path: the same results in float arithmetic, as fast as the CPU can.
// Same bits for the same number of threads; for any number with
// `deterministic`, at 1.5 times the work. Bfloat16 needs bfloat16_products().
//
// What the forward finds and the backward reads; what is not wanted is nullptr.
struct TiledSums {
  // [n], lse / log 2, the unit that scores are kept in. The backward takes
  // differences from it: where one key outweighs all others it is the key's
  // score to the last bit, and elsewhere it needs more digits than a float has.
  double* lse_log2;
  // [n]: the same over the keys of the row's own label, which then are in no
  // other sum; the backward is that of lse - own. Needs labels, keys of their
  // own and no self_index; takes no bias of equal labels.
  double* own_log2 = nullptr;
  // [kept_scores()]: what spares the backward to form the scores again, to the
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

// Every level's panel of rows divides it.
constexpr int64_t kWidestPanel = 48;
// Floats before the scores that are kept, which say how to read them.
constexpr int64_t kKeptHead = 16;

// How many floats are kept, whatever the CPU; s3h_ext/ops/_scores.py has the
// same.
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
