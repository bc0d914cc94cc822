// Row-wise log-sum-exp over a similarity matrix that is never stored, on a GPU.
//
//   x_ij  = q_i . k_j / temperature + key_bias_j + [y_i = y_j] same_label_i
//   lse_i = log sum_{j not excluded} exp(x_ij)
//
// No torch in here: device pointers, row-major and contiguous, aligned to their
// element, and a stream. Everything runs on the current device; nothing
// allocates, copies to or from the host, or waits, so that a CUDA graph can
// capture it. In the symmetric case the queries are the keys and row i does not
// see key i.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/similarity_problem.h"
#include "scalar.h"
#include "status.h"

namespace s3h::cuda {

struct SimilarityProblem : s3h::SimilarityProblem<void> {
  Scalar type;  // of queries and keys; the vectors are Real
};

struct SimilarityOptions {
  bool assume_normalized = false;  // rows are expected to be unit: where they
                                   // are not, forward and backward take longer
  bool deterministic = false;      // the same bits on every run
  bool allow_tf32 = false;         // kFloat32 by one TF32 product
  bool zeroed = false;  // the workspace begins with n zeros, if it has room
};

// Bytes of device memory, aligned to 256, that the call below works in. It
// depends on the current device; 0 is possible.
size_t logsumexp_workspace(const SimilarityProblem& problem,
                           const SimilarityOptions& options);

// lse: [n] Real. A row without any key gets -inf. correction: [n] float, for
// the backward (similarity_log.cuh); not of kFloat64.
Status logsumexp(const SimilarityProblem& problem,
                 const SimilarityOptions& options, void* workspace, void* lse,
                 void* correction, Stream stream);

size_t logsumexp_backward_workspace(const SimilarityProblem& problem,
                                    const SimilarityOptions& options,
                                    bool need_queries, bool need_keys);

// grad, lse: [n] Real; grad_queries: [n, depth], grad_keys: [m, depth], of the
// matrices' type, either may be nullptr: it is not calculated. In the symmetric
// case grad_queries takes both roles' gradient and grad_keys is not used.
Status logsumexp_backward(const SimilarityProblem& problem,
                          const SimilarityOptions& options, void* workspace,
                          const void* grad, const void* lse,
                          const void* correction, void* grad_queries,
                          void* grad_keys, Stream stream);

}  // namespace s3h::cuda
