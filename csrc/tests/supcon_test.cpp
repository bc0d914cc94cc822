// Runs the supervised contrastive loss on odd sizes with two threads and
// compares it with a double-precision loss from the whole matrix, and its
// gradient with that loss's slope along a random line. Meant for the sanitizers
// (tools/sanitize.sh). Prints what it ran; exits with 1 at the first mismatch.
#include "../cpu/supcon.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

#include "../cpu/dispatch.h"
#include "../cpu/similarity.h"
#include "blocks.h"
#include "threads.h"

namespace {

using namespace s3h::cpu;

void require(bool holds, const char* what, int64_t n, double ours,
             double right) {
  if (holds) return;
  std::fprintf(stderr, "%s of %lld rows is %.12g, not %.12g\n", what,
               static_cast<long long>(n), ours, right);
  std::exit(1);
}

template <typename T, typename Element>
void check(int64_t n, int64_t depth, Reduction reduction, bool deterministic) {
  constexpr double kTemperature = 0.3;
  std::mt19937 random(11);
  std::normal_distribution<double> normal(0, 0.5);
  std::vector<double> z(static_cast<size_t>(n * depth));
  std::vector<Element> stored;
  for (double& x : z) {
    stored.emplace_back();
    set(stored.back(), static_cast<float>(normal(random)));
    x = get(stored.back());
  }
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < n; ++i)
    labels.push_back(i % 7 == 3 ? -1 : (int64_t{1} << 40) + i % 5);
  const auto rows = exact(stored);
  const auto own = exact(labels);
  const auto size = static_cast<size_t>(reduction == Reduction::kNone ? n : 1);
  const auto lse = exact(std::vector<double>(static_cast<size_t>(n)));
  const auto loss = exact(std::vector<T>(size));
  const auto upstream = exact(std::vector<T>(size, T(1)));
  const auto grad = exact(std::vector<Element>(stored.size()));
  const SupConProblem<T, Element> p{
      rows.get(), own.get(),    n, depth, (int64_t{1} << 40) + 4, kTemperature,
      reduction,  deterministic};
  const int64_t counted = supcon(p, kThreads, lse.get(), loss.get());
  supcon_backward(p, kThreads, upstream.get(), lse.get(), grad.get());

  // The sum of all losses, and how many there are.
  const auto total = [&](const std::vector<double>& at) {
    const auto s = [&](int64_t i, int64_t j) {
      double dot = 0;
      for (int64_t d = 0; d < depth; ++d)
        dot += at[static_cast<size_t>(i * depth + d)] *
               at[static_cast<size_t>(j * depth + d)];
      return dot / kTemperature;
    };
    double sum = 0;
    int64_t seen = 0;
    for (int64_t i = 0; i < n; ++i) {
      double all = 0, same = 0;
      int64_t number = 0;
      for (int64_t j = 0; j < n; ++j) {
        if (j == i) continue;
        all += std::exp(s(i, j));
        const int64_t label = labels[static_cast<size_t>(i)];
        if (label < 0 || label >= p.classes) continue;
        if (label != labels[static_cast<size_t>(j)]) continue;
        same += s(i, j);
        ++number;
      }
      if (number == 0) continue;
      ++seen;
      sum += std::log(all) - same / static_cast<double>(number);
    }
    return std::pair(sum, seen);
  };
  const auto [sum, seen] = total(z);
  require(counted == seen, "counted", n, static_cast<double>(counted),
          static_cast<double>(seen));
  const double share =
      reduction == Reduction::kMean && seen > 0 ? static_cast<double>(seen) : 1;
  double ours = 0;
  for (size_t i = 0; i < size; ++i) ours += static_cast<double>(loss[i]);
  constexpr double kTolerance = std::is_same_v<T, double> ? 1e-9 : 2e-5;
  const double right = sum / share;
  require(std::abs(ours - right) <= kTolerance * (1 + std::abs(right)), "loss",
          n, ours, right);
  // Derivative along a random direction, by the central difference.
  constexpr double kStep = 1e-5;
  std::vector<double> above = z, below = z;
  double slope = 0, scale = 0;
  for (size_t at = 0; at < z.size(); ++at) {
    const double direction = normal(random);
    above[at] += kStep * direction;
    below[at] -= kStep * direction;
    slope += get(grad[at]) * direction;
    scale += std::abs(get(grad[at]) * direction);
  }
  const double expected =
      (total(above).first - total(below).first) / (2 * kStep * share);
  const double allowed = std::is_same_v<Element, Bfloat16> ? 1e-2 : 1e-5;
  require(std::abs(slope - expected) <= allowed * (1 + scale), "slope", n,
          slope, expected);
}

}  // namespace

int main() {
  int cases = 0;
  for (const int64_t n : {0, 1, 2, 37, 260})
    for (const int64_t depth : {3, 40})
      for (const auto reduction :
           {Reduction::kNone, Reduction::kMean, Reduction::kSum})
        for (const bool deterministic : {false, true}) {
          check<float, float>(n, depth, reduction, deterministic);
          check<double, double>(n, depth, reduction, deterministic);
          if (bfloat16_products())
            check<float, Bfloat16>(n, depth, reduction, deterministic);
          ++cases;
        }
  std::printf("%d cases of the supervised contrastive loss at level %s\n",
              cases, level_name(dispatch_level()));
}
