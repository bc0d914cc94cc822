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
// lse_log2: [n], lse / log 2, the unit that scores are kept in. The backward
// takes differences from it: where one key outweighs all others it is the key's
// score to the last bit, and elsewhere it needs more digits than a float has.
template <typename Element>
void logsumexp_tiled(const SimilarityProblem<float, Element>& problem,
                     const Threads& threads, bool deterministic,
                     double* lse_log2);

template <typename Element>
void logsumexp_tiled_backward(const SimilarityProblem<float, Element>& problem,
                              const Threads& threads, bool deterministic,
                              const float* grad, const double* lse_log2,
                              Element* grad_queries, Element* grad_keys,
                              const RowFunction<float>& add = {});

constexpr double kLn2 = 0.6931471805599453;

// Whether this CPU multiplies pairs of bfloat16.
bool bfloat16_products();

}  // namespace s3h::cpu
