// Dot products with class sums, the attraction of every contrastive loss here:
//
//   S_c = sum of the keys of class c,   dot_i = q_i . S_{y_i}
//
// In the symmetric case the keys are the queries and row i is left out of its
// own sum. A class outside [0, classes) has no sum, and its dot is 0.
#pragma once

#include <cstdint>

#include "../common/class_sums_problem.h"
#include "threads.h"

namespace s3h::cpu {

// sums: [classes, depth] scratch memory; dots: [n].
template <typename T>
void class_sum_dots(const ClassSumProblem<T>& problem, const Threads& threads,
                    T* sums, T* dots);

// grad: [n]; sums: [2, classes, depth] scratch memory. Either gradient may be
// nullptr; in the symmetric case grad_queries gets the gradient of both roles.
template <typename T>
void class_sum_dots_backward(const ClassSumProblem<T>& problem,
                             const Threads& threads, const T* grad, T* sums,
                             T* grad_queries, T* grad_keys);

// Building blocks of the above, for other kernels.

template <typename Element>
struct ClassRows {
  const Element* rows;     // [count, depth]
  const int64_t* classes;  // [count]
  int64_t count;
  int64_t depth;
  int64_t class_count;
};

// sums[c] = sum of weight_i row_i over the rows of class c; no weights: all 1.
template <typename T, typename Element = T>
void class_sums(const ClassRows<Element>& rows, const T* weights,
                const Threads& threads, T* sums);

// own . (sum - own): a row with the others of its class.
template <typename T, typename Element = T>
T dot_others(const Element* own, const T* sum, int64_t depth);

// Divides `count` rows of `depth` elements among the threads, or leaves them to
// the caller if that is faster.
void for_rows(const Threads& threads, int64_t count, int64_t depth,
              const RangeFunction& body);

}  // namespace s3h::cpu
