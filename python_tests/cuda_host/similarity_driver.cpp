// Runs the similarity kernels forward and backward on a problem from a file and
// writes what they return. Every array is a heap block of its exact size, and
// memory that a kernel has to write is full of NaN before.
//
//   similarity PROBLEM RESULT     (the layout is in kernels.py)
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "cuda/similarity.h"
#include "executor.h"

namespace {

using namespace s3h::cuda;

struct Header {
  int64_t type, symmetric, n, m, depth;
  int64_t key_bias, labels, same_label_bias, self_index;
  int64_t assume_normalized, deterministic, allow_tf32;
  int64_t need_queries, need_keys;
  int64_t multiprocessors, shared_limit;
  double temperature, same_label_value;
};

using Memory = std::unique_ptr<void, void (*)(void*)>;

Memory block(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes == 0 ? 1 : bytes) != 0) std::abort();
  std::memset(memory, 0xff, bytes);
  return {memory, std::free};
}

Memory read(std::ifstream& file, bool there, size_t bytes) {
  if (!there) return {nullptr, std::free};
  Memory memory = block(bytes);
  file.read(static_cast<char*>(memory.get()),
            static_cast<std::streamsize>(bytes));
  return memory;
}

void check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "similarity: %s\n", status.message);
  std::exit(3);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  std::ifstream file(arguments[1], std::ios::binary);
  Header h;
  file.read(reinterpret_cast<char*>(&h), sizeof h);
  s3h::host::multiprocessor_count = static_cast<int>(h.multiprocessors);
  s3h::host::shared_limit = static_cast<size_t>(h.shared_limit);
  const auto type = static_cast<Scalar>(h.type);
  const size_t element = type == Scalar::kFloat64   ? 8
                         : type == Scalar::kFloat32 ? 4
                                                    : 2;
  const size_t real = type == Scalar::kFloat64 ? 8 : 4;
  const size_t n = h.n, m = h.m, depth = h.depth;
  const bool two = h.symmetric == 0;

  const Memory queries = read(file, true, n * depth * element);
  const Memory keys = read(file, two, m * depth * element);
  const Memory key_bias = read(file, h.key_bias, m * real);
  const Memory query_labels = read(file, h.labels, n * 8);
  const Memory key_labels = read(file, h.labels && two, m * 8);
  const Memory same = read(file, h.same_label_bias, n * real);
  const Memory self = read(file, h.self_index, n * 8);
  const Memory grad = read(file, true, n * real);
  if (!file) return 2;

  const SimilarityProblem problem{
      {h.symmetric != 0, queries.get(), keys.get(), h.n, h.m, h.depth,
       h.temperature, key_bias.get(),
       static_cast<const int64_t*>(query_labels.get()),
       static_cast<const int64_t*>(key_labels.get()), same.get(),
       h.same_label_value, static_cast<const int64_t*>(self.get())},
      type};
  const SimilarityOptions options{h.assume_normalized != 0,
                                  h.deterministic != 0, h.allow_tf32 != 0};

  const Memory lse = block(n * real), correction = block(n * 4);
  {
    const Memory workspace = block(logsumexp_workspace(problem, options));
    check(logsumexp(problem, options, workspace.get(), lse.get(),
                    correction.get(), nullptr));
  }
  const bool need_queries = h.need_queries != 0;
  const bool need_keys = h.need_keys != 0 && two;
  const Memory grad_queries = block(need_queries ? n * depth * element : 0);
  const Memory grad_keys = block(need_keys ? m * depth * element : 0);
  {
    const Memory workspace = block(logsumexp_backward_workspace(
        problem, options, need_queries, need_keys));
    check(logsumexp_backward(problem, options, workspace.get(), grad.get(),
                             lse.get(), correction.get(),
                             need_queries ? grad_queries.get() : nullptr,
                             need_keys ? grad_keys.get() : nullptr, nullptr));
  }

  std::ofstream result(arguments[2], std::ios::binary);
  const auto write = [&](const Memory& memory, size_t bytes) {
    result.write(static_cast<const char*>(memory.get()),
                 static_cast<std::streamsize>(bytes));
  };
  write(lse, n * real);
  if (need_queries) write(grad_queries, n * depth * element);
  if (need_keys) write(grad_keys, m * depth * element);
  return result ? 0 : 2;
}
