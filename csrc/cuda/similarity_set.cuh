// Makes the KernelSet of an element type; included by one .cu file per type, so
// that they compile side by side.
#pragma once

#include "similarity_backward.cuh"
#include "similarity_forward.cuh"
#include "similarity_kernels.h"

namespace s3h::cuda {

// One element per thread, the splits' parts added in their order.
template <typename Type>
__global__ void __launch_bounds__(256)
    add_parts(const float* parts, int splits, int64_t elements,
              typename Type::Stored* gradient) {
  const int64_t stride = static_cast<int64_t>(grid_x()) * block_threads();
  for (int64_t i =
           static_cast<int64_t>(block_x()) * block_threads() + thread_x();
       i < elements; i += stride) {
    float sum = 0.f;
    for (int s = 0; s < splits; ++s) sum += parts[s * elements + i];
    gradient[i] = from_float<Type>(sum);
  }
}

template <typename Type>
struct Launches {
  using T = Tile<Type>;

  static int64_t row_blocks(const ScoreArguments& a) {
    return (a.rows.matrix.count + T::kRows - 1) / T::kRows;
  }
  // Calls function.operator()<Depth, kPlain>() for what the arguments are.
  template <bool kWithOneChunk, typename Function>
  static Status with_instance(const ScoreArguments& a,
                              const Function& function) {
    const auto with_depth = [&]<bool kPlain>() {
      // TF32 has registers to spare: one kernel serves any depth.
      if constexpr (!T::kWide || T::kSplit) {
        if (a.chunks == 1 && a.stages == 2) {
          if (a.rows.matrix.depth == kChunk && a.rows.matrix.aligned &&
              a.columns.matrix.aligned)
            return function.template operator()<Depth::kWhole, kPlain>();
          if constexpr (kWithOneChunk && !T::kWide)
            return function.template operator()<Depth::kOneChunk, kPlain>();
        }
      }
      return function.template operator()<Depth::kAny, kPlain>();
    };
    return a.plain ? with_depth.template operator()<true>()
                   : with_depth.template operator()<false>();
  }
  static Status forward(const ScoreArguments& a, const ForwardOutputs& out,
                        int splits, Stream stream) {
    return with_instance<false>(a, [&]<Depth kDepth, bool kPlain>() {
      return launch(scores_forward<Type, kDepth, kPlain>,
                    {row_blocks(a), splits, 1}, kThreads,
                    Shared<Type>::bytes(a.chunks, a.stages), stream, a, out);
    });
  }
  static Status triangle(const ScoreArguments& a, const ForwardOutputs& out,
                         int splits, Stream stream) {
    return with_instance<false>(a, [&]<Depth kDepth, bool kPlain>() {
      return launch(triangle_forward<Type, kDepth, kPlain>,
                    {row_blocks(a), splits, 1}, kThreads,
                    Shared<Type>::bytes(a.chunks, a.stages), stream, a, out);
    });
  }
  static Status backward(const ScoreArguments& a, const BackwardOutputs& out,
                         int64_t blocks, int splits, Stream stream) {
    return with_instance<true>(a, [&]<Depth kDepth, bool kPlain>() {
      return launch(scores_backward<Type, kDepth, kPlain>,
                    {blocks, splits, a.chunks}, kThreads,
                    Shared<Type>::bytes(a.chunks, a.stages), stream, a, out);
    });
  }
  static Status sum(const float* parts, int splits, int64_t elements,
                    void* gradient, Stream stream) {
    constexpr int kBlock = 256;
    const int64_t blocks = (elements + kBlock - 1) / kBlock;
    return launch(add_parts<Type>, {blocks < 65536 ? blocks : 65536, 1, 1},
                  kBlock, 0, stream, parts, splits, elements,
                  static_cast<typename Type::Stored*>(gradient));
  }
};

template <typename Type>
constexpr KernelSet kernel_set() {
  using L = Launches<Type>;
  return {Tile<Type>::kRows,
          Tile<Type>::kColumns,
          sizeof(typename Type::Stored),
          &Shared<Type>::bytes,
          &L::forward,
          &L::triangle,
          &L::backward,
          &L::sum};
}

}  // namespace s3h::cuda
