// The similarity kernels compute the denominators; the work here is linear in
// the number of rows. Classes are numbered by first appearance, so that labels
// may be any numbers and there are never more sums than rows. The attraction's
// gradient is added to a row as the similarity kernel finishes it.
#include "supcon.h"

#include <algorithm>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "bfloat16.h"
#include "class_sums.h"
#include "similarity.h"

namespace s3h::cpu {
namespace {

struct Classes {
  std::vector<int64_t> own;   // by row; -1: none
  std::vector<int64_t> size;  // by class
};

Classes number_classes(const int64_t* labels, int64_t n, int64_t bound) {
  Classes found;
  found.own.assign(static_cast<size_t>(n), -1);
  const auto known = [&](int64_t label) {
    return label >= 0 && (bound < 0 || label < bound);
  };
  int64_t largest = -1;
  for (int64_t i = 0; i < n; ++i)
    if (known(labels[i])) largest = std::max(largest, labels[i]);
  // A lookup table, for labels that are small numbers.
  std::vector<int64_t> table(
      largest < 4 * n ? static_cast<size_t>(largest + 1) : 0, -1);
  std::unordered_map<int64_t, int64_t> others;
  for (int64_t i = 0; i < n; ++i) {
    if (!known(labels[i])) continue;
    int64_t& number = table.empty()
                          ? others.try_emplace(labels[i], -1).first->second
                          : table[static_cast<size_t>(labels[i])];
    if (number < 0) {
      number = static_cast<int64_t>(found.size.size());
      found.size.push_back(0);
    }
    found.own[static_cast<size_t>(i)] = number;
    ++found.size[static_cast<size_t>(number)];
  }
  return found;
}

// Shared by forward and backward: the classes and their sums.
template <typename T, typename Element>
struct Positives {
  Positives(const SupConProblem<T, Element>& p, const Threads& threads)
      : classes(number_classes(p.labels, p.n, p.classes)),
        sums(classes.size.size() * static_cast<size_t>(p.depth)) {
    class_sums<T, Element>({p.features, classes.own.data(), p.n, p.depth,
                            static_cast<int64_t>(classes.size.size())},
                           nullptr, threads, sums.data());
    for (const int64_t size : classes.size)
      if (size > 1) counted += size;
  }

  // Number of other rows of the row's class; 0: the row is not counted.
  int64_t number(int64_t row) const {
    const int64_t own = classes.own[static_cast<size_t>(row)];
    return own < 0 ? 0 : classes.size[static_cast<size_t>(own)] - 1;
  }

  size_t offset(int64_t row, int64_t depth) const {
    return static_cast<size_t>(classes.own[static_cast<size_t>(row)] * depth);
  }

  Classes classes;
  std::vector<T> sums;
  int64_t counted = 0;
};

template <typename T, typename Element>
SimilarityProblem<T, Element> similarities(const SupConProblem<T, Element>& p) {
  SimilarityProblem<T, Element> all{};
  all.symmetric = true;
  all.queries = p.features;
  all.n = all.m = p.n;
  all.depth = p.depth;
  all.temperature = p.temperature;
  return all;
}

}  // namespace

template <typename T, typename Element>
int64_t supcon(const SupConProblem<T, Element>& p, const Threads& threads,
               double* lse, T* loss, float* kept) {
  // The unit of lse.
  constexpr double kLog = std::is_same_v<T, double> ? 1.0 : kLn2;
  if constexpr (std::is_same_v<T, double>)
    logsumexp_rows(similarities(p), threads, lse);
  else
    logsumexp_tiled(similarities(p), threads, p.deterministic,
                    {lse, nullptr, kept});
  const Positives<T, Element> positives(p, threads);
  std::vector<T> reduced(
      static_cast<size_t>(p.reduction == Reduction::kNone ? 0 : p.n));
  T* rows = p.reduction == Reduction::kNone ? loss : reduced.data();
  for_rows(threads, p.n, p.depth, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rows[i] = 0;
      const int64_t number = positives.number(i);
      if (number == 0) continue;
      const Element* own = p.features + i * p.depth;
      const T dot = dot_others(
          own, positives.sums.data() + positives.offset(i, p.depth), p.depth);
      rows[i] = static_cast<T>(
          lse[i] * kLog - static_cast<double>(dot) /
                              (p.temperature * static_cast<double>(number)));
    }
  });
  if (p.reduction != Reduction::kNone) {
    double sum = 0;
    for (const T row : reduced) sum += static_cast<double>(row);
    if (p.reduction == Reduction::kMean)
      sum /= static_cast<double>(std::max<int64_t>(1, positives.counted));
    *loss = static_cast<T>(sum);
  }
  return positives.counted;
}

// The gradient of row i's attraction, and of others' in which it is a positive:
//   dz_i = w_i (S - 2 z_i) + W,  w_i = -g_i / (temperature (n - 1)),
// W is the sum of w_j z_j over the class. If all g_i are equal, W = w_i S.
template <typename T, typename Element>
void supcon_backward(const SupConProblem<T, Element>& p, const Threads& threads,
                     const T* grad, double* lse, Element* grad_features,
                     float* kept) {
  const Positives<T, Element> positives(p, threads);
  const bool each = p.reduction == Reduction::kNone;
  const T unit = p.reduction == Reduction::kMean
                     ? static_cast<T>(std::max<int64_t>(1, positives.counted))
                     : T(1);
  std::vector<T> upstream(static_cast<size_t>(p.n));
  std::vector<T> weight(static_cast<size_t>(p.n));
  for (int64_t i = 0; i < p.n; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t number = positives.number(i);
    if (number == 0) continue;
    upstream[at] = (each ? grad[i] : *grad) / unit;
    weight[at] = -upstream[at] /
                 (static_cast<T>(p.temperature) * static_cast<T>(number));
  }
  std::vector<T> weighted(each ? positives.sums.size() : 0);
  if (each)
    class_sums<T, Element>(
        {p.features, positives.classes.own.data(), p.n, p.depth,
         static_cast<int64_t>(positives.classes.size.size())},
        weight.data(), threads, weighted.data());

  const RowFunction<T> attract = [&](int64_t i, T* to) {
    if (positives.number(i) == 0) return;
    const size_t offset = positives.offset(i, p.depth);
    const T* sum = positives.sums.data() + offset;
    const T* others = weighted.data() + offset;
    const Element* own = p.features + i * p.depth;
    const T w = weight[static_cast<size_t>(i)];
    if (each)
      for (int64_t d = 0; d < p.depth; ++d)
        to[d] += w * (sum[d] - 2 * to_float(own[d])) + others[d];
    else
      for (int64_t d = 0; d < p.depth; ++d)
        to[d] += 2 * w * (sum[d] - to_float(own[d]));
  };
  if constexpr (std::is_same_v<T, double>)
    logsumexp_rows_backward(similarities(p), threads, upstream.data(), lse,
                            grad_features, nullptr, attract);
  else
    logsumexp_tiled_backward<Element>(similarities(p), threads, p.deterministic,
                                      upstream.data(), {lse, nullptr, kept},
                                      grad_features, nullptr, attract);
}

#define S3H_INSTANTIATE(T, Element)                                            \
  template int64_t supcon<T, Element>(const SupConProblem<T, Element>&,        \
                                      const Threads&, double*, T*, float*);    \
  template void supcon_backward<T, Element>(const SupConProblem<T, Element>&,  \
                                            const Threads&, const T*, double*, \
                                            Element*, float*);
S3H_INSTANTIATE(float, float)
S3H_INSTANTIATE(float, Bfloat16)
S3H_INSTANTIATE(double, double)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
