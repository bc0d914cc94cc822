// The kernels of one element type, as the host calls them.
#pragma once

#include "similarity_arguments.h"

namespace s3h::cuda {

struct KernelSet {
  int rows;     // of a block
  int columns;  // of a tile
  int element;  // bytes
  size_t (*shared_bytes)(int chunks, int stages);
  // Blocks: one per `rows` rows (of the backward from first_block on, `blocks`
  // of them), times splits of the columns; each launches one kernel.
  Status (*forward)(const ScoreArguments&, const ForwardOutputs&, int splits,
                    Stream);
  Status (*triangle)(const ScoreArguments&, const ForwardOutputs&, int splits,
                     Stream);
  Status (*backward)(const ScoreArguments&, const BackwardOutputs&,
                     int64_t blocks, int splits, Stream);
  // gradient = sum of the splits' parts, in their order.
  Status (*add_parts)(const float* parts, int splits, int64_t elements,
                      void* gradient, Stream);
};

const KernelSet& bf16_kernels();
const KernelSet& fp16_kernels();
const KernelSet& tf32_kernels();  // float32 by one TF32 product
const KernelSet& fp32_kernels();  // float32 to its accuracy

// float64: no tensor cores, no workspace.
Status logsumexp_fp64(const SimilarityProblem& problem, double* lse,
                      Stream stream);
Status logsumexp_backward_fp64(const SimilarityProblem& problem,
                               const double* grad, const double* lse,
                               double* grad_queries, double* grad_keys,
                               Stream stream);

}  // namespace s3h::cuda
