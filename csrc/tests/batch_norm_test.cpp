// Runs batch norm with ReLU on odd sizes and compares it with the formula in
// double precision, and one thread with two, bit for bit. Meant for the
// sanitizers (tools/sanitize.sh). Prints what it ran; exits with 1 at the first
// mismatch.
#include "../cpu/batch_norm.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../cpu/dispatch.h"
#include "blocks.h"
#include "threads.h"

namespace {

using namespace s3h::cpu;

struct Case {
  int64_t rows, channels;
  bool residual;
  double offset;  // of the data, in standard deviations
};

void require(bool holds, const char* what, const Case& c, double ours,
             double right) {
  if (holds) return;
  std::fprintf(stderr, "%s of %lld rows, %lld channels is %.9g, not %.9g\n",
               what, static_cast<long long>(c.rows),
               static_cast<long long>(c.channels), ours, right);
  std::exit(1);
}

template <typename Element>
struct Result {
  explicit Result(const Case& c)
      : maps(static_cast<size_t>(c.rows * c.channels)),
        each(static_cast<size_t>(c.channels)) {}

  size_t maps, each;
  std::unique_ptr<Element[]> out{new Element[maps]}, to_x{new Element[maps]},
      to_residual{new Element[maps]};
  std::unique_ptr<float[]> mean{new float[each]}, variance{new float[each]},
      to_weight{new float[each]}, to_bias{new float[each]};
};

template <typename T>
void require_same(const std::unique_ptr<T[]>& a, const std::unique_ptr<T[]>& b,
                  size_t count, const char* what, const Case& c) {
  require(std::memcmp(a.get(), b.get(), count * sizeof(T)) == 0, what, c, 1, 2);
}

template <typename Element>
void check(const Case& c) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const auto draw = [&](int64_t count, double offset) {
    std::vector<Element> values(static_cast<size_t>(count));
    for (Element& x : values)
      set(x, normal(random) + static_cast<float>(offset));
    return exact(values);
  };
  const int64_t size = c.rows * c.channels;
  const auto x = draw(size, c.offset), residual = draw(size, 0),
             grad = draw(size, 0.5);
  std::vector<float> ones(static_cast<size_t>(c.channels));
  for (float& w : ones) w = 1 + 0.3f * normal(random);
  const auto weight = exact(ones);
  for (float& b : ones) b = 0.3f * normal(random);
  const auto bias = exact(ones);
  const BatchNormProblem p{c.rows, c.channels, weight.get(), bias.get(), 1e-5};
  const auto run = [&](const Threads& threads) {
    Result<Element> r(c);
    batch_norm_relu(p, threads, x.get(), c.residual ? residual.get() : nullptr,
                    r.out.get(), r.mean.get(), r.variance.get());
    batch_norm_relu_backward(p, threads, grad.get(), r.out.get(), x.get(),
                             r.mean.get(), r.variance.get(), r.to_x.get(),
                             r.to_weight.get(), r.to_bias.get(),
                             c.residual ? r.to_residual.get() : nullptr);
    return r;
  };
  const Result<Element> r = run(kThreads), alone = run(kOneThread);
  require_same(r.out, alone.out, r.maps, "number of threads: out", c);
  require_same(r.to_x, alone.to_x, r.maps, "number of threads: to_x", c);
  require_same(r.to_weight, alone.to_weight, r.each, "threads: weight", c);
  require_same(r.to_bias, alone.to_bias, r.each, "threads: bias", c);

  const double step = std::is_same_v<Element, Bfloat16> ? 5e-3 : 3e-6;
  const auto count = static_cast<double>(c.rows);
  for (int64_t channel = 0; channel < c.channels; ++channel) {
    const auto at = [&](const auto& map, int64_t row) {
      return get(map[row * c.channels + channel]);
    };
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c.rows; ++i) mean += at(x, i) / count;
    for (int64_t i = 0; i < c.rows; ++i)
      variance += (at(x, i) - mean) * (at(x, i) - mean) / count;
    const double inverse = 1 / std::sqrt(variance + p.eps);
    // The mean is a float, and so is the distance from it.
    const double far = 1e-6 * std::abs(mean) * inverse;
    const double loss = step + far;
    require(std::abs(r.mean[channel] - mean) <= 1e-6 * (1 + std::abs(mean)),
            "mean", c, r.mean[channel], mean);
    require(std::abs(r.variance[channel] - variance) <= 1e-5 * variance,
            "variance", c, r.variance[channel], variance);
    double sum = 0, product = 0;
    const auto g = [&](int64_t i) {
      return at(r.out, i) > 0 ? at(grad, i) : 0;
    };
    for (int64_t i = 0; i < c.rows; ++i) {
      const double h = (at(x, i) - mean) * inverse;
      const double y = h * weight[channel] + bias[channel] +
                       (c.residual ? at(residual, i) : 0.0);
      const double right = y > 0 ? y : 0;
      require(std::abs(at(r.out, i) - right) <= loss * (1 + std::abs(right)),
              "out", c, at(r.out, i), right);
      sum += g(i);
      product += g(i) * h;
    }
    require(std::abs(r.to_bias[channel] - sum) <= 1e-5 * count, "bias", c,
            r.to_bias[channel], sum);
    require(std::abs(r.to_weight[channel] - product) <= (1e-5 + far) * count,
            "weight", c, r.to_weight[channel], product);
    for (int64_t i = 0; i < c.rows; ++i) {
      const double h = (at(x, i) - mean) * inverse;
      const double right = weight[channel] * inverse *
                           (g(i) - sum / count - h * product / count);
      require(std::abs(at(r.to_x, i) - right) <=
                  2 * loss * (1 + std::abs(right)) * (1 + inverse),
              "to_x", c, at(r.to_x, i), right);
      if (c.residual)
        require(at(r.to_residual, i) == g(i), "to_residual", c,
                at(r.to_residual, i), g(i));
    }
  }
}

}  // namespace

int main() {
  int cases = 0;
  for (const int64_t rows : {2, 7, 16, 33, 1000, 2500})
    for (const int64_t channels : {1, 3, 16, 37, 64, 300})
      for (const bool residual : {false, true})
        for (const double offset : {0.0, 30.0}) {
          const Case c{rows, channels, residual, offset};
          check<float>(c);
          check<Bfloat16>(c);
          ++cases;
        }
  std::printf("%d cases of batch norm at level %s\n", cases,
              level_name(dispatch_level()));
}
