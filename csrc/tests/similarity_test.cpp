// Runs every kernel of the similarity family on odd sizes with two threads and
// compares it with a direct double-precision sum. Meant for the sanitizers
// (tools/sanitize.sh): inputs are exact-size heap blocks, so that a read past
// the end is seen. Prints what it ran; exits with 1 at the first mismatch.
#include "../cpu/similarity.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "../cpu/class_sums.h"
#include "../cpu/dispatch.h"
#include "blocks.h"
#include "threads.h"

namespace {

using s3h::SimilarityProblem;
using s3h::cpu::Bfloat16;

struct Case {
  bool symmetric, biased, labelled, self, deterministic;
  int64_t n, m, depth;
  double temperature;
};

template <typename T>
void require_close(const char* what, const Case& c, const T* ours,
                   const std::vector<double>& right, double tolerance) {
  double scale = 1;
  for (double value : right)
    if (std::isfinite(value)) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < right.size(); ++i) {
    const double mine = get(ours[i]);
    if (mine == right[i] || std::abs(mine - right[i]) <= tolerance * scale)
      continue;
    std::fprintf(stderr,
                 "%s: [%zu] is %g, not %g (symmetric %d biased %d labelled %d "
                 "self %d deterministic %d, %lld x %lld x %lld, t %g)\n",
                 what, i, mine, right[i], c.symmetric, c.biased, c.labelled,
                 c.self, c.deterministic, static_cast<long long>(c.n),
                 static_cast<long long>(c.m), static_cast<long long>(c.depth),
                 c.temperature);
    std::exit(1);
  }
}

// If the forward keeps the scores, the results must have the same bits.
template <typename Element>
void check_kept(const Case& c, const SimilarityProblem<float, Element>& p,
                const float* grad, const double* lse,
                const Element* grad_queries, const Element* grad_keys) {
  const auto kept = exact(std::vector<float>(
      static_cast<size_t>(s3h::cpu::kept_scores(c.n, c.m, c.symmetric))));
  const auto again = exact(std::vector<double>(static_cast<size_t>(c.n)));
  const auto queries =
      exact(std::vector<Element>(static_cast<size_t>(c.n * c.depth)));
  const auto keys =
      exact(std::vector<Element>(static_cast<size_t>(c.m * c.depth)));
  s3h::cpu::logsumexp_tiled(p, kThreads, false,
                            {again.get(), nullptr, kept.get()});
  s3h::cpu::logsumexp_tiled_backward(
      p, kThreads, false, grad, {again.get(), nullptr, kept.get()},
      queries.get(), c.symmetric ? nullptr : keys.get());
  const auto require_same = [&](const char* what, const auto* ours,
                                const auto* right, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      require_close(what, c, ours + i, {get(right[i])}, 0);
  };
  require_same("lse beside kept scores", again.get(), lse, c.n);
  require_same("grad queries from kept scores", queries.get(), grad_queries,
               c.n * c.depth);
  if (!c.symmetric)
    require_same("grad keys from kept scores", keys.get(), grad_keys,
                 c.m * c.depth);
}

template <typename T, typename Element>
void check(const Case& c) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto matrix = [&](int64_t rows) {
    std::vector<Element> values(static_cast<size_t>(rows * c.depth));
    const float unit = 1 / std::sqrt(static_cast<float>(c.depth));
    for (Element& value : values) set(value, normal(random) * unit);
    return exact(values);
  };
  const auto vector = [&](int64_t size) {
    std::vector<T> values(static_cast<size_t>(size));
    for (T& value : values) value = normal(random);
    return exact(values);
  };
  const auto labels = [&](int64_t size) {
    std::vector<int64_t> values(static_cast<size_t>(size));
    for (int64_t& value : values)
      value = static_cast<int64_t>(random() % 4) - 1;
    return exact(values);
  };
  const auto queries = matrix(c.n), other_keys = matrix(c.m);
  const auto bias = vector(c.m), same = vector(c.n), grad = vector(c.n);
  const auto query_labels = labels(c.n), other_labels = labels(c.m);
  const auto self = labels(c.n);
  const SimilarityProblem<T, Element> p{
      c.symmetric,
      queries.get(),
      c.symmetric ? nullptr : other_keys.get(),
      c.n,
      c.m,
      c.depth,
      c.temperature,
      c.biased ? bias.get() : nullptr,
      c.labelled ? query_labels.get() : nullptr,
      c.labelled && !c.symmetric ? other_labels.get() : nullptr,
      c.labelled ? same.get() : nullptr,
      0.0,
      c.self ? self.get() : nullptr};
  const Element* keys = c.symmetric ? queries.get() : other_keys.get();
  const int64_t* key_labels =
      c.symmetric ? query_labels.get() : other_labels.get();

  const auto score = [&](int64_t i, int64_t j) {
    if (c.symmetric ? i == j : c.self && self[i] == j)
      return -std::numeric_limits<double>::infinity();
    double x = 0;
    for (int64_t d = 0; d < c.depth; ++d)
      x += get(queries[i * c.depth + d]) * get(keys[j * c.depth + d]);
    x /= c.temperature;
    if (c.biased) x += bias[j];
    if (c.labelled && query_labels[i] >= 0 && query_labels[i] == key_labels[j])
      x += same[i];
    return x;
  };
  std::vector<double> lse(static_cast<size_t>(c.n));
  std::vector<double> to_queries(static_cast<size_t>(c.n * c.depth));
  std::vector<double> to_keys(static_cast<size_t>(c.m * c.depth));
  std::vector<double> scores(static_cast<size_t>(c.m));
  for (int64_t i = 0; i < c.n; ++i) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = 0; j < c.m; ++j) {
      scores[static_cast<size_t>(j)] = score(i, j);
      top = std::max(top, scores[static_cast<size_t>(j)]);
    }
    if (std::isfinite(top))
      for (double x : scores) sum += std::exp(x - top);
    lse[static_cast<size_t>(i)] = sum > 0 ? top + std::log(sum) : top;
    if (sum == 0) continue;
    for (int64_t j = 0; j < c.m; ++j) {
      const double weight = grad[i] / c.temperature *
                            std::exp(scores[static_cast<size_t>(j)] - top) /
                            sum;
      auto& others = c.symmetric ? to_queries : to_keys;
      for (int64_t d = 0; d < c.depth; ++d) {
        to_queries[static_cast<size_t>(i * c.depth + d)] +=
            weight * get(keys[j * c.depth + d]);
        others[static_cast<size_t>(j * c.depth + d)] +=
            weight * get(queries[i * c.depth + d]);
      }
    }
  }

  const auto ours = exact(std::vector<double>(static_cast<size_t>(c.n)));
  const auto grad_queries =
      exact(std::vector<Element>(static_cast<size_t>(c.n * c.depth)));
  const auto grad_keys =
      exact(std::vector<Element>(static_cast<size_t>(c.m * c.depth)));
  Element* keys_target = c.symmetric ? nullptr : grad_keys.get();
  constexpr double kTolerance = std::is_same_v<T, double>           ? 1e-12
                                : std::is_same_v<Element, Bfloat16> ? 2e-2
                                                                    : 2e-5;
  if constexpr (std::is_same_v<T, double>) {
    s3h::cpu::logsumexp_rows(p, kThreads, ours.get());
    s3h::cpu::logsumexp_rows_backward(p, kThreads, grad.get(), ours.get(),
                                      grad_queries.get(), keys_target);
  } else {
    s3h::cpu::logsumexp_tiled(p, kThreads, c.deterministic, {ours.get()});
    s3h::cpu::logsumexp_tiled_backward(p, kThreads, c.deterministic, grad.get(),
                                       {ours.get()}, grad_queries.get(),
                                       keys_target);
    if (!c.deterministic)
      check_kept(c, p, grad.get(), ours.get(), grad_queries.get(),
                 grad_keys.get());
    for (int64_t i = 0; i < c.n; ++i) ours[i] *= s3h::cpu::kLn2;
  }
  require_close("lse", c, ours.get(), lse, kTolerance);
  require_close("grad queries", c, grad_queries.get(), to_queries, kTolerance);
  if (!c.symmetric)
    require_close("grad keys", c, grad_keys.get(), to_keys, kTolerance);
}

// The product is a denormal, or 0 if they are flushed.
bool keeps_denormals() {
  volatile float small = std::numeric_limits<float>::min();
  return small * 0.25f != 0;
}

// Threads that must restore their floating-point state after each piece.
const s3h::cpu::Threads kWatched{
    2, [](int64_t begin, int64_t end, const s3h::cpu::RangeFunction& body) {
      kThreads.parallel_for(begin, end, [&](int64_t first, int64_t last) {
        body(first, last);
        if (keeps_denormals()) return;
        std::fprintf(stderr, "a thread was left without denormals\n");
        std::exit(1);
      });
    }};

// Keys at +1 and -1 give the second one weights of e^(-2 / temperature). Large
// enough for two threads.
template <typename T>
void check_denormals(double temperature, const T* bias) {
  constexpr int64_t kCount = 1 << 14, kDepth = 64;
  const auto rows = exact(std::vector<T>(kCount * kDepth));
  for (int64_t i = 0; i < kCount; ++i) rows[i * kDepth] = 1;
  const auto keys = exact(std::vector<T>(2 * kDepth));
  keys[0] = 1;
  keys[kDepth] = -1;
  const auto grad = exact(std::vector<T>(kCount, T(1e-6)));
  grad[0] = 1;
  const auto lse = exact(std::vector<double>(kCount));
  const auto to_rows = exact(std::vector<T>(kCount * kDepth));
  const auto to_keys = exact(std::vector<T>(2 * kDepth));
  SimilarityProblem<T> p{};
  p.queries = rows.get();
  p.keys = keys.get();
  p.n = kCount;
  p.m = 2;
  p.depth = kDepth;
  p.temperature = temperature;
  p.key_bias = bias;
  const auto require_none = [&](const T* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const T size = std::abs(values[i]);
      if (size == 0 || size >= std::numeric_limits<T>::min()) continue;
      std::fprintf(stderr, "denormal gradient %g at temperature %g\n",
                   static_cast<double>(values[i]), temperature);
      std::exit(1);
    }
  };
  if constexpr (std::is_same_v<T, double>) {
    s3h::cpu::logsumexp_rows(p, kWatched, lse.get());
    s3h::cpu::logsumexp_rows_backward(p, kWatched, grad.get(), lse.get(),
                                      to_rows.get(), to_keys.get());
  } else {
    s3h::cpu::logsumexp_tiled(p, kWatched, false, {lse.get()});
    s3h::cpu::logsumexp_tiled_backward(p, kWatched, false, grad.get(),
                                       {lse.get()}, to_rows.get(),
                                       to_keys.get());
  }
  require_none(to_rows.get(), kCount * kDepth);
  require_none(to_keys.get(), 2 * kDepth);
  if (keeps_denormals()) return;
  std::fprintf(stderr, "the caller was left without denormals\n");
  std::exit(1);
}

// Neighbouring classes far out of range have no sum, nor an address of one.
void check_labels_far_outside() {
  const auto rows = exact(std::vector<float>(6, 1.0f));
  const auto own = exact(std::vector<int64_t>{
      std::numeric_limits<int64_t>::max(), int64_t{1} << 62,
      std::numeric_limits<int64_t>::min()});
  const s3h::ClassSumProblem<float> p{true, rows.get(), nullptr, 3, 3,
                                      2,    own.get(),  nullptr, 2};
  const auto sums = exact(std::vector<float>(8));
  const auto dots = exact(std::vector<float>(3, 1.0f));
  s3h::cpu::class_sum_dots(p, kThreads, sums.get(), dots.get());
  const Case c{true, false, true, false, true, 3, 3, 2, 1};
  require_close("dots", c, dots.get(), {0, 0, 0}, 0);
}

void check_class_sums() {
  const std::vector<float> q{1, 2, 3, 4, 5, 6}, grad{1, -1, 2};
  const std::vector<int64_t> classes{0, 1, 0};
  const auto rows = exact(q), upstream = exact(grad);
  const auto own = exact(classes);
  const s3h::ClassSumProblem<float> p{true, rows.get(), nullptr, 3, 3,
                                      2,    own.get(),  nullptr, 2};
  const auto sums = exact(std::vector<float>(8));
  const auto dots = exact(std::vector<float>(3));
  const auto to = exact(std::vector<float>(6));
  s3h::cpu::class_sum_dots(p, kThreads, sums.get(), dots.get());
  s3h::cpu::class_sum_dots_backward<float>(p, kThreads, upstream.get(),
                                           sums.get(), to.get(), nullptr);
  const Case c{true, false, true, false, true, 3, 3, 2, 1};
  require_close("dots", c, dots.get(), {17, 0, 17}, 1e-6);
  require_close("grad", c, to.get(), {15, 18, 0, 0, 3, 6}, 1e-6);
}

}  // namespace

int main() {
  int cases = 0;
  const int64_t sizes[][3] = {{1, 1, 1},      {7, 5, 3},      {101, 67, 33},
                              {260, 420, 64}, {252, 252, 64}, {320, 320, 64},
                              {640, 640, 64}};
  for (const auto& size : sizes)
    for (int flags = 0; flags < 32; ++flags)
      for (double temperature : {0.3, 0.004}) {
        const bool symmetric = flags & 1;
        const Case c{symmetric,
                     (flags & 2) != 0,
                     (flags & 4) != 0,
                     !symmetric && (flags & 8) != 0,
                     (flags & 16) != 0,
                     size[0],
                     symmetric ? size[0] : size[1],
                     size[2],
                     temperature};
        if (symmetric && (flags & 8) != 0) continue;  // has no `self` to give
        // The larger sizes are for the threads: one of each kind suffices.
        if (size[0] > 200 && (flags & 6) != 0) continue;
        if (size[0] > 260 && !symmetric) continue;
        if (size[0] > 320 && temperature < 0.1) continue;
        check<float, float>(c);
        if (!c.deterministic) check<double, double>(c);
        if (s3h::cpu::bfloat16_products()) check<float, Bfloat16>(c);
        ++cases;
      }
  check_class_sums();
  check_labels_far_outside();
  for (double temperature : {0.0225, 0.0215, 0.0112, 0.01})
    check_denormals<float>(temperature, nullptr);
  const double far[] = {0, -628};
  check_denormals<double>(0.0225, far);
  std::printf("%d cases at level %s\n", cases,
              s3h::cpu::level_name(s3h::cpu::dispatch_level()));
}
