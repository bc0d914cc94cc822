// The rows are cut into blocks whose size depends only on the number of
// channels, and sums of blocks are added in order in float64, so no result
// depends on the number of threads. A thread walks through its blocks twice:
// forwards for the sums and backwards for the result, which begins with what is
// still in its cache.
#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "batch_norm_rows.h"
#include "dispatch.h"
#include "run_ranges.h"
#include "workspace.h"

namespace s3h::cpu {
namespace {

// Small, because sums inside a block are float32.
constexpr int64_t kBlockElements = 1 << 13;
// Below this many elements, waking threads costs more than the work.
constexpr int64_t kSerial = 1 << 14;

template <typename Element>
const BatchNormRows<Element>& row_kernels() {
  const auto pick = [](const BatchNormRows<float>& single,
                       const BatchNormRows<Bfloat16>& half) -> const auto& {
    if constexpr (std::is_same_v<Element, float>)
      return single;
    else
      return half;
  };
#if defined(S3H_X86_LEVELS)
  if (bfloat16_conversions())
    return pick(avx512_bf16::kBatchNormFloat, avx512_bf16::kBatchNormBfloat16);
  if (dispatch_level() >= Level::kAvx512)
    return pick(avx512::kBatchNormFloat, avx512::kBatchNormBfloat16);
  if (dispatch_level() >= Level::kAvx2)
    return pick(avx2::kBatchNormFloat, avx2::kBatchNormBfloat16);
#endif
  return pick(baseline::kBatchNormFloat, baseline::kBatchNormBfloat16);
}

// Blocks of rows, with three numbers per block and channel and four per
// channel.
class Blocks {
 public:
  explicit Blocks(const BatchNormProblem& p)
      : rows_(p.rows),
        channels_(p.channels),
        size_(std::max<int64_t>(
            64, kBlockElements / std::max<int64_t>(1, channels_) / 16 * 16)),
        width_((channels_ + kChannelPadding - 1) / kChannelPadding *
               kChannelPadding),
        sums_(space_.reserve<float>(3 * count() * width_)),
        coefficients_(space_.reserve<float>(4 * width_)) {
    space_.allocate();
  }

  int64_t count() const { return (rows_ + size_ - 1) / size_; }
  int64_t rows(int64_t block) const {
    return std::min(size_, rows_ - block * size_);
  }
  // Index of a block's first element.
  int64_t at(int64_t block) const { return block * size_ * channels_; }

  // which: 0 to 2
  float* sum(int64_t block, int which) const {
    return space_.at<float>(sums_) + (3 * block + which) * width_;
  }
  // which: 0 to 3
  float* coefficient(int which) const {
    return space_.at<float>(coefficients_) + which * width_;
  }

  void each(const Threads& threads, bool backwards,
            const std::function<void(int64_t block)>& body) const {
    const auto range = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        body(backwards ? begin + end - 1 - i : i);
    };
    run_ranges(threads, count(), rows_ * channels_ < kSerial, range);
  }

 private:
  int64_t rows_, channels_, size_, width_;
  Workspace space_;
  size_t sums_, coefficients_;
};

double inverse_deviation(float variance, double eps) {
  return 1 / std::sqrt(static_cast<double>(variance) + eps);
}

}  // namespace

template <typename Element>
void batch_norm_relu(const BatchNormProblem& p, const Threads& threads,
                     const Element* x, const Element* residual, Element* out,
                     float* mean, float* variance) {
  const BatchNormRows<Element>& kernels = row_kernels<Element>();
  const Blocks blocks(p);
  blocks.each(threads, false, [&](int64_t block) {
    kernels.moments(x + blocks.at(block), blocks.rows(block), p.channels,
                    blocks.sum(block, 0), blocks.sum(block, 1),
                    blocks.sum(block, 2));
  });
  float* const middle = blocks.coefficient(0);
  float* const scale = blocks.coefficient(1);
  float* const bias = blocks.coefficient(2);
  for (int64_t c = 0; c < p.channels; ++c) {
    // Combined as in Chan, Golub and LeVeque (1979).
    double average = 0, squares = 0, before = 0;
    for (int64_t block = 0; block < blocks.count(); ++block) {
      const auto added = static_cast<double>(blocks.rows(block));
      const double sum = blocks.sum(block, 1)[c];
      const double step = blocks.sum(block, 0)[c] + sum / added - average;
      const double share = added / (before + added);
      average += step * share;
      squares += blocks.sum(block, 2)[c] - sum * sum / added +
                 step * step * before * share;
      before += added;
    }
    squares = std::max(squares, 0.0);
    mean[c] = static_cast<float>(average);
    variance[c] = static_cast<float>(squares / static_cast<double>(p.rows));
    middle[c] = mean[c];
    scale[c] =
        static_cast<float>(p.weight[c] * inverse_deviation(variance[c], p.eps));
    bias[c] = p.bias[c];
  }
  blocks.each(threads, true, [&](int64_t block) {
    const int64_t at = blocks.at(block);
    kernels.normalise(x + at, residual == nullptr ? nullptr : residual + at,
                      blocks.rows(block), p.channels, middle, scale, bias,
                      out + at);
  });
}

// With g the gradient behind ReLU's mask and h = (x - mean) / sqrt(var + eps):
// dx = weight / sqrt(var + eps) (g - mean of g - h (mean of g h)).
template <typename Element>
void batch_norm_relu_backward(const BatchNormProblem& p, const Threads& threads,
                              const Element* grad, const Element* out,
                              const Element* x, const float* mean,
                              const float* variance, Element* grad_x,
                              float* grad_weight, float* grad_bias,
                              Element* grad_residual) {
  const BatchNormRows<Element>& kernels = row_kernels<Element>();
  const Blocks blocks(p);
  float* const middle = blocks.coefficient(0);
  std::copy(mean, mean + p.channels, middle);
  blocks.each(threads, false, [&](int64_t block) {
    const int64_t at = blocks.at(block);
    kernels.sums(grad + at, out + at, x + at, blocks.rows(block), p.channels,
                 middle, blocks.sum(block, 0), blocks.sum(block, 1),
                 grad_residual == nullptr ? nullptr : grad_residual + at);
  });
  float* const scale = blocks.coefficient(1);
  float* const centre = blocks.coefficient(2);
  float* const slope = blocks.coefficient(3);
  const auto rows = static_cast<double>(p.rows);
  for (int64_t c = 0; c < p.channels; ++c) {
    double sum = 0, product = 0;
    for (int64_t block = 0; block < blocks.count(); ++block) {
      sum += blocks.sum(block, 0)[c];
      product += blocks.sum(block, 1)[c];
    }
    const double inverse = inverse_deviation(variance[c], p.eps);
    grad_bias[c] = static_cast<float>(sum);
    grad_weight[c] = static_cast<float>(product * inverse);
    scale[c] = static_cast<float>(p.weight[c] * inverse);
    centre[c] = static_cast<float>(sum / rows);
    slope[c] = static_cast<float>(product * inverse * inverse / rows);
  }
  // With a residual, g has already been stored.
  const Element* const masked = grad_residual == nullptr ? grad : grad_residual;
  const Element* const mask = grad_residual == nullptr ? out : nullptr;
  blocks.each(threads, true, [&](int64_t block) {
    const int64_t at = blocks.at(block);
    kernels.gradient(masked + at, mask == nullptr ? nullptr : mask + at, x + at,
                     blocks.rows(block), p.channels, middle, scale, centre,
                     slope, grad_x + at);
  });
}

#define S3H_INSTANTIATE(Element)                                               \
  template void batch_norm_relu<Element>(                                      \
      const BatchNormProblem&, const Threads&, const Element*, const Element*, \
      Element*, float*, float*);                                               \
  template void batch_norm_relu_backward<Element>(                             \
      const BatchNormProblem&, const Threads&, const Element*, const Element*, \
      const Element*, const float*, const float*, Element*, float*, float*,    \
      Element*);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
