// Sums are cut among the threads by depth, everything else by rows, so that no
// result depends on the number of threads. All of it is one pass over the rows
// at the speed of memory.
#include "class_sums.h"

#include <algorithm>

namespace s3h::cpu {
namespace {

constexpr int64_t kColumns = 32;

// Below this many elements waking threads costs more than the work.
constexpr int64_t kSerial = 1 << 15;

void run(const Threads& threads, int64_t count, int64_t elements,
         const RangeFunction& body) {
  if (elements < kSerial)
    body(0, count);
  else
    threads.parallel_for(0, count, body);
}

bool known(int64_t label, int64_t classes) {
  return label >= 0 && label < classes;
}

// sums[c] = sum of weight_i * row_i over the rows of class c; no weights: 1.
template <typename T>
void add_up(const T* rows, const T* weights, const int64_t* labels,
            int64_t count, int64_t depth, int64_t classes,
            const Threads& threads, T* sums) {
  const int64_t groups = (depth + kColumns - 1) / kColumns;
  run(threads, groups, count * depth, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kColumns;
    const int64_t last = std::min(end * kColumns, depth);
    for (int64_t c = 0; c < classes; ++c)
      std::fill(sums + c * depth + first, sums + c * depth + last, T(0));
    for (int64_t i = 0; i < count; ++i) {
      if (!known(labels[i], classes)) continue;
      const T weight = weights == nullptr ? T(1) : weights[i];
      T* to = sums + labels[i] * depth;
      const T* from = rows + i * depth;
      for (int64_t d = first; d < last; ++d) to[d] += weight * from[d];
    }
  });
}

// a . (b - c), with partial sums that a compiler may put in lanes.
template <typename T>
T dot_difference(const T* a, const T* b, const T* c, int64_t depth) {
  constexpr int64_t kParts = 16;
  T parts[kParts] = {};
  int64_t d = 0;
  for (; d + kParts <= depth; d += kParts)
    for (int64_t i = 0; i < kParts; ++i)
      parts[i] += a[d + i] * (b[d + i] - (c == nullptr ? T(0) : c[d + i]));
  T sum = 0;
  for (; d < depth; ++d) sum += a[d] * (b[d] - (c == nullptr ? T(0) : c[d]));
  for (T part : parts) sum += part;
  return sum;
}

}  // namespace

template <typename T>
void class_sum_dots(const ClassSumProblem<T>& p, const Threads& threads,
                    T* sums, T* dots) {
  const T* keys = p.symmetric ? p.queries : p.keys;
  const int64_t* key_classes = p.symmetric ? p.query_classes : p.key_classes;
  add_up<T>(keys, nullptr, key_classes, p.m, p.depth, p.classes, threads, sums);
  run(threads, p.n, p.n * p.depth, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t label = p.query_classes[i];
      const T* own = p.queries + i * p.depth;
      dots[i] = known(label, p.classes)
                    ? dot_difference(own, sums + label * p.depth,
                                     p.symmetric ? own : nullptr, p.depth)
                    : T(0);
    }
  });
}

template <typename T>
void class_sum_dots_backward(const ClassSumProblem<T>& p,
                             const Threads& threads, const T* grad, T* sums,
                             T* grad_queries, T* grad_keys) {
  const int64_t* key_classes = p.symmetric ? p.query_classes : p.key_classes;
  T* weighted = sums + p.classes * p.depth;
  if (grad_queries != nullptr)
    add_up<T>(p.symmetric ? p.queries : p.keys, nullptr, key_classes, p.m,
              p.depth, p.classes, threads, sums);
  if (grad_keys != nullptr || p.symmetric)
    add_up<T>(p.queries, grad, p.query_classes, p.n, p.depth, p.classes,
              threads, weighted);
  if (grad_queries != nullptr)
    run(threads, p.n, p.n * p.depth, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* to = grad_queries + i * p.depth;
        const int64_t label = p.query_classes[i];
        if (!known(label, p.classes)) {
          std::fill(to, to + p.depth, T(0));
          continue;
        }
        const T* sum = sums + label * p.depth;
        const T* others = weighted + label * p.depth;
        const T* own = p.queries + i * p.depth;
        if (p.symmetric)
          for (int64_t d = 0; d < p.depth; ++d)
            to[d] = grad[i] * (sum[d] - 2 * own[d]) + others[d];
        else
          for (int64_t d = 0; d < p.depth; ++d) to[d] = grad[i] * sum[d];
      }
    });
  if (grad_keys != nullptr && !p.symmetric)
    run(threads, p.m, p.m * p.depth, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        T* to = grad_keys + j * p.depth;
        const int64_t label = key_classes[j];
        if (known(label, p.classes))
          std::copy(weighted + label * p.depth,
                    weighted + (label + 1) * p.depth, to);
        else
          std::fill(to, to + p.depth, T(0));
      }
    });
}

#define S3H_INSTANTIATE(T)                                                   \
  template void class_sum_dots<T>(const ClassSumProblem<T>&, const Threads&, \
                                  T*, T*);                                   \
  template void class_sum_dots_backward<T>(                                  \
      const ClassSumProblem<T>&, const Threads&, const T*, T*, T*, T*);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(double)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
