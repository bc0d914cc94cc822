// Sums are cut among the threads by depth, everything else by rows, so that no
// result depends on the number of threads. All of it is one pass over the rows
// at the speed of memory.
#include "class_sums.h"

#include <algorithm>
#include <cstring>

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
    const int64_t width = std::min(end * kColumns, depth) - first;
    for (int64_t c = 0; c < classes; ++c)
      std::fill_n(sums + c * depth + first, width, T(0));
    for (int64_t i = 0; i < count; ++i) {
      if (!known(labels[i], classes)) continue;
      const T weight = weights == nullptr ? T(1) : weights[i];
      T* __restrict to = sums + labels[i] * depth + first;
      const T* __restrict from = rows + i * depth + first;
      for (int64_t d = 0; d < width; ++d) to[d] += weight * from[d];
    }
  });
}

// a . (b - c), or a . b; in vectors that every CPU has, four sums at a time.
template <bool Subtract, typename T>
T dot_difference(const T* a, const T* b, const T* c, int64_t depth) {
  typedef T Lanes __attribute__((vector_size(16)));
  constexpr int64_t kLanes = 16 / sizeof(T);
  const auto lanes = [](const T* from) {
    Lanes v;
    std::memcpy(&v, from, sizeof v);
    return v;
  };
  Lanes parts[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes <= depth; d += 4 * kLanes)
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t at = d + i * kLanes;
      Lanes other = lanes(b + at);
      if constexpr (Subtract) other -= lanes(c + at);
      parts[i] += lanes(a + at) * other;
    }
  T sum = 0;
  for (; d < depth; ++d) sum += a[d] * (Subtract ? b[d] - c[d] : b[d]);
  const Lanes part = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  for (int64_t i = 0; i < kLanes; ++i) sum += part[i];
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
      const T* sum = sums + label * p.depth;
      dots[i] = !known(label, p.classes) ? T(0)
                : p.symmetric ? dot_difference<true>(own, sum, own, p.depth)
                              : dot_difference<false>(own, sum, own, p.depth);
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
