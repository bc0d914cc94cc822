// Entry points of the tiled path and instruction-set dispatch.
#include <algorithm>

#include "dispatch.h"
#include "similarity_engine.h"

namespace s3h::cpu {
namespace {

// Smaller float problems gain nothing from a tile unit: it takes 32 elements of
// a row at a time, and more data is copied.
constexpr int64_t kLeastDepth = 64, kLeastScores = 512 * 512;

}  // namespace

const TileKernels* unit_kernels() {
#if defined(S3H_X86_LEVELS)
  const Level level = dispatch_level();
  if (level == Level::kAmx) return &amx::kTiles;
  if (level == Level::kAmxEmulated) return &amx_emulated::kTiles;
#endif
  return nullptr;
}

const TileKernels& tile_kernels([[maybe_unused]] bool pairs) {
#if defined(S3H_X86_LEVELS)
  const Level level = dispatch_level();
  if (pairs) return avx512_bf16::kTiles;
  if (level >= Level::kAvx512) return avx512::kTiles;
  if (level >= Level::kAvx2) return avx2::kTiles;
#endif
  return baseline::kTiles;
}

namespace {

// Kernels to try in turn: the last ones accept anything.
template <typename Element>
std::vector<const TileKernels*> candidates(
    const SimilarityProblem<float, Element>& problem) {
  constexpr bool kPairs = std::is_same_v<Element, Bfloat16>;
  const TileKernels* unit = unit_kernels();
  if (kPairs) return {unit != nullptr ? unit : &tile_kernels(true)};
  if (unit == nullptr || problem.depth < kLeastDepth ||
      problem.n * problem.m < kLeastScores)
    return {&tile_kernels(false)};
  return {unit, &tile_kernels(false)};
}

}  // namespace

template <typename Element>
void logsumexp_tiled(const SimilarityProblem<float, Element>& problem,
                     const Threads& threads, bool deterministic,
                     const TiledSums& sums) {
  if (problem.n == 0) return;
  if (problem.m == 0) {
    for (double* log2 : {sums.lse_log2, sums.own_log2})
      if (log2 != nullptr) std::fill(log2, log2 + problem.n, -kInfinity);
    return;
  }
  for (const TileKernels* kernels : candidates(problem))
    if (Engine<Element>(problem, threads, deterministic, *kernels)
            .forward(sums))
      return;
}

template <typename Element>
void logsumexp_tiled_backward(const SimilarityProblem<float, Element>& problem,
                              const Threads& threads, bool deterministic,
                              const float* grad, const TiledSums& sums,
                              Element* grad_queries, Element* grad_keys,
                              const RowFunction<float>& add) {
  if (problem.n == 0 || problem.m == 0) {
    if (grad_queries != nullptr)
      std::fill(grad_queries, grad_queries + problem.n * problem.depth,
                Element{});
    if (grad_keys != nullptr)
      std::fill(grad_keys, grad_keys + problem.m * problem.depth, Element{});
    return;
  }
  for (const TileKernels* kernels : candidates(problem))
    if (Engine<Element>(problem, threads, deterministic, *kernels)
            .backward(grad, sums, grad_queries, grad_keys, add))
      return;
}

bool bfloat16_products() { return dispatch_level() >= Level::kAmxEmulated; }

#define S3H_INSTANTIATE(Element)                                      \
  template void logsumexp_tiled<Element>(                             \
      const SimilarityProblem<float, Element>&, const Threads&, bool, \
      const TiledSums&);                                              \
  template void logsumexp_tiled_backward<Element>(                    \
      const SimilarityProblem<float, Element>&, const Threads&, bool, \
      const float*, const TiledSums&, Element*, Element*,             \
      const RowFunction<float>&);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
