// Sums are divided among the threads by depth, everything else by rows, so that
// no result depends on the number of threads. It is one pass over the rows at
// memory speed.
#include "class_sums.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "bfloat16.h"
#include "run_ranges.h"

namespace s3h::cpu {
namespace {

constexpr int64_t kColumns = 32;

// Below this many elements, one thread is faster.
constexpr int64_t kSerial = 1 << 17;

void run(const Threads& threads, int64_t count, int64_t elements,
         const RangeFunction& body) {
  run_ranges(threads, count, elements < kSerial, body);
}

bool known(int64_t label, int64_t classes) {
  return label >= 0 && label < classes;
}

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(16)));
};

template <typename V, typename T>
V load_lanes(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename V>
V load_lanes(const Bfloat16* from) {
  typedef uint16_t Halves __attribute__((vector_size(8)));
  typedef uint32_t Words __attribute__((vector_size(16)));
  return (
      V)(__builtin_convertvector(
             load_lanes<Halves>(reinterpret_cast<const uint16_t*>(from)), Words)
         << 16);
}

// a . (b - a), or a . b, in vectors that every CPU has, four sums at a time.
template <bool Subtract, typename T, typename Element>
T dot_with(const Element* a, const T* b, int64_t depth) {
  using V = typename Lanes<T>::type;
  constexpr int64_t kLanes = 16 / sizeof(T);
  V parts[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes <= depth; d += 4 * kLanes)
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t at = d + i * kLanes;
      const V own = load_lanes<V>(a + at);
      V other = load_lanes<V>(b + at);
      if constexpr (Subtract) other -= own;
      parts[i] += own * other;
    }
  T sum = 0;
  for (; d < depth; ++d) {
    const T own = to_float(a[d]);
    sum += own * (Subtract ? b[d] - own : b[d]);
  }
  const V part = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  for (int64_t i = 0; i < kLanes; ++i) sum += part[i];
  return sum;
}

// Long sequential sums lose precision: after every kRun rows of a class its sum
// so far is moved to a total in double.
class Totals {
 public:
  Totals(int64_t classes, int64_t width)
      : classes_(static_cast<size_t>(classes)), width_(width) {}

  // Call after adding a row to its class's sum.
  template <typename T>
  void count(int64_t label, T* sum) {
    Class& own = classes_[static_cast<size_t>(label)];
    if (++own.rows < kRun) return;
    own.rows = 0;
    if (own.total < 0) {
      own.total = static_cast<int64_t>(totals_.size());
      totals_.resize(totals_.size() + static_cast<size_t>(width_));
    }
    double* __restrict total = totals_.data() + own.total;
    for (int64_t d = 0; d < width_; ++d) {
      total[d] += sum[d];
      sum[d] = 0;
    }
  }

  template <typename T>
  void finish(int64_t label, T* sum) const {
    const Class& own = classes_[static_cast<size_t>(label)];
    if (own.total < 0) return;
    const double* total = totals_.data() + own.total;
    for (int64_t d = 0; d < width_; ++d)
      sum[d] = static_cast<T>(total[d] + sum[d]);
  }

 private:
  static constexpr int64_t kRun = 16;

  struct Class {
    int64_t rows = 0;    // rows since the last move
    int64_t total = -1;  // index in totals_; -1: not there yet
  };

  std::vector<Class> classes_;
  std::vector<double> totals_;
  int64_t width_;
};

}  // namespace

template <typename T, typename Element>
void class_sums(const ClassRows<Element>& rows, const T* weights,
                const Threads& threads, T* sums) {
  const int64_t depth = rows.depth;
  const int64_t groups = (depth + kColumns - 1) / kColumns;
  run(threads, groups, rows.count * depth, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kColumns;
    const int64_t width = std::min(end * kColumns, depth) - first;
    for (int64_t c = 0; c < rows.class_count; ++c)
      std::fill_n(sums + c * depth + first, width, T(0));
    Totals totals(rows.class_count, width);
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t label = rows.classes[i];
      if (!known(label, rows.class_count)) continue;
      const T weight = weights == nullptr ? T(1) : weights[i];
      T* __restrict to = sums + label * depth + first;
      const Element* __restrict from = rows.rows + i * depth + first;
      for (int64_t d = 0; d < width; ++d) to[d] += weight * to_float(from[d]);
      totals.count(label, to);
    }
    for (int64_t c = 0; c < rows.class_count; ++c)
      totals.finish(c, sums + c * depth + first);
  });
}

template <typename T, typename Element>
T dot_others(const Element* own, const T* sum, int64_t depth) {
  return dot_with<true>(own, sum, depth);
}

void for_rows(const Threads& threads, int64_t count, int64_t depth,
              const RangeFunction& body) {
  run(threads, count, count * depth, body);
}

template <typename T>
void class_sum_dots(const ClassSumProblem<T>& p, const Threads& threads,
                    T* sums, T* dots) {
  const T* keys = p.symmetric ? p.queries : p.keys;
  const int64_t* key_classes = p.symmetric ? p.query_classes : p.key_classes;
  class_sums<T>({keys, key_classes, p.m, p.depth, p.classes}, nullptr, threads,
                sums);
  for_rows(threads, p.n, p.depth, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t label = p.query_classes[i];
      const T* own = p.queries + i * p.depth;
      dots[i] = 0;
      if (!known(label, p.classes)) continue;
      const T* sum = sums + label * p.depth;
      dots[i] = p.symmetric ? dot_with<true>(own, sum, p.depth)
                            : dot_with<false>(own, sum, p.depth);
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
    class_sums<T>({p.symmetric ? p.queries : p.keys, key_classes, p.m, p.depth,
                   p.classes},
                  nullptr, threads, sums);
  if (grad_keys != nullptr || p.symmetric)
    class_sums<T>({p.queries, p.query_classes, p.n, p.depth, p.classes}, grad,
                  threads, weighted);
  if (grad_queries != nullptr)
    for_rows(threads, p.n, p.depth, [&](int64_t begin, int64_t end) {
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
    for_rows(threads, p.m, p.depth, [&](int64_t begin, int64_t end) {
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

#define S3H_INSTANTIATE(T, Element)                                         \
  template void class_sums<T, Element>(const ClassRows<Element>&, const T*, \
                                       const Threads&, T*);                 \
  template T dot_others<T, Element>(const Element*, const T*, int64_t);
S3H_INSTANTIATE(float, float)
S3H_INSTANTIATE(float, Bfloat16)
S3H_INSTANTIATE(double, double)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
