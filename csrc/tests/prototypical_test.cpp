// Runs the prototypical loss on odd sizes with two threads and compares it with
// a double-precision loss from all scores, and its gradients with that loss's
// slope along a random line. Meant for the sanitizers (tools/sanitize.sh).
// Prints what it ran; exits with 1 at the first mismatch.
#include "../cpu/prototypical.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../cpu/dispatch.h"
#include "../cpu/similarity.h"
#include "blocks.h"
#include "threads.h"

namespace {

using namespace s3h::cpu;

struct Case {
  int64_t n, classes, per_class, depth;
  Reduction reduction;
  bool deterministic, kept;
  double temperature;
};

void require(bool holds, const char* what, const Case& c, double ours,
             double right) {
  if (holds) return;
  std::fprintf(stderr, "%s of %lld rows and %lld x %lld is %.12g, not %.12g\n",
               what, static_cast<long long>(c.n),
               static_cast<long long>(c.classes),
               static_cast<long long>(c.per_class), ours, right);
  std::exit(1);
}

template <typename Element>
void check(const Case& c) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal(
      0, 1 / std::sqrt(static_cast<double>(c.depth)));
  // Rows, then prototypes.
  const int64_t all = c.n + c.classes * c.per_class;
  std::vector<double> z;
  std::vector<Element> stored(static_cast<size_t>(all * c.depth));
  for (Element& x : stored) {
    set(x, static_cast<float>(normal(random)));
    z.push_back(get(x));
  }
  const auto cut = stored.begin() + c.n * c.depth;
  const auto rows = exact(std::vector<Element>(stored.begin(), cut));
  const auto prototypes = exact(std::vector<Element>(cut, stored.end()));
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < c.n; ++i)
    labels.push_back(i % 7 == 3   ? -1
                     : i % 7 == 5 ? int64_t{1} << 40
                                  : i % (c.classes + 1));
  const auto own = exact(labels);
  const bool each = c.reduction == Reduction::kNone;
  const auto size = static_cast<size_t>(each ? c.n : 1);
  const auto lse = exact(std::vector<double>(static_cast<size_t>(2 * c.n)));
  const auto loss = exact(std::vector<float>(size));
  const auto upstream = exact(std::vector<float>(size, 1.0f));
  const auto to_rows =
      exact(std::vector<Element>(static_cast<size_t>(c.n * c.depth)));
  const auto to_prototypes =
      exact(std::vector<Element>(static_cast<size_t>((all - c.n) * c.depth)));
  const auto scores = exact(std::vector<float>(
      static_cast<size_t>(kept_scores(c.n, all - c.n, false))));
  float* kept = c.kept ? scores.get() : nullptr;
  const PrototypicalProblem<Element> p{
      rows.get(),  prototypes.get(), own.get(), c.n,
      c.classes,   c.per_class,      c.depth,   c.temperature,
      c.reduction, c.deterministic};
  const int64_t counted =
      prototypical(p, kThreads, lse.get(), loss.get(), kept);
  prototypical_backward(p, kThreads, upstream.get(), lse.get(), kept,
                        to_rows.get(), to_prototypes.get());

  int64_t seen = 0;
  const auto total = [&](const std::vector<double>& at) {
    double sum = 0;
    seen = 0;
    for (int64_t i = 0; i < c.n; ++i) {
      const int64_t label = labels[static_cast<size_t>(i)];
      if (label < 0 || label >= c.classes || c.classes < 2) continue;
      double parts[2] = {0, 0};
      for (int64_t j = 0; j < all - c.n; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < c.depth; ++d)
          dot += at[static_cast<size_t>(i * c.depth + d)] *
                 at[static_cast<size_t>((c.n + j) * c.depth + d)];
        parts[j / c.per_class == label] += std::exp(dot / c.temperature);
      }
      sum += std::log(parts[0]) - std::log(parts[1]);
      ++seen;
    }
    return sum;
  };
  const double right_sum = total(z);
  const double share = c.reduction == Reduction::kMean
                           ? static_cast<double>(std::max<int64_t>(1, seen))
                           : 1.0;
  double ours = 0;
  for (size_t i = 0; i < size; ++i) ours += loss[static_cast<int64_t>(i)];
  if (c.n == 0 && each) ours = 0;
  const double right = right_sum / share;
  require(counted == seen, "number", c, static_cast<double>(counted),
          static_cast<double>(seen));
  require(std::abs(ours - right) <= 1e-5 * (1 + std::abs(right_sum)), "loss", c,
          ours, right);
  // Derivative along a random direction, by the central difference.
  constexpr double kStep = 1e-5;
  std::vector<double> above = z, below = z;
  double slope = 0, scale = 0;
  for (size_t at = 0; at < z.size(); ++at) {
    const double direction = normal(random);
    above[at] += kStep * direction;
    below[at] -= kStep * direction;
    const auto place = static_cast<int64_t>(at) - c.n * c.depth;
    const double grad = place < 0 ? get(to_rows[static_cast<int64_t>(at)])
                                  : get(to_prototypes[place]);
    slope += grad * direction;
    scale += std::abs(grad * direction);
  }
  const double expected = (total(above) - total(below)) / (2 * kStep * share);
  const double allowed = std::is_same_v<Element, Bfloat16> ? 1e-2 : 2e-5;
  require(std::abs(slope - expected) <= allowed * (1 + scale), "slope", c,
          slope, expected);
}

}  // namespace

int main() {
  int cases = 0;
  const int64_t sizes[][4] = {{0, 3, 1, 5},
                              {1, 1, 1, 3},
                              {9, 2, 3, 4},
                              {37, 53, 1, 40},
                              {260, 101, 2, 17}};
  for (const auto& size : sizes)
    for (const auto reduction :
         {Reduction::kNone, Reduction::kMean, Reduction::kSum})
      for (const int mode : {0, 1, 2})
        for (const double temperature : {0.3, 0.01}) {
          const Case c{size[0],   size[1],   size[2],   size[3],
                       reduction, mode == 1, mode == 2, temperature};
          check<float>(c);
          if (bfloat16_products()) check<Bfloat16>(c);
          ++cases;
        }
  std::printf("%d cases of the prototypical loss at level %s\n", cases,
              level_name(dispatch_level()));
}
