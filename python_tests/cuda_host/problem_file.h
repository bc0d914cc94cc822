// What the driver programs share: problems from a file that kernels.py wrote,
// results to a file. Every array is a heap block of its exact size, and memory
// that a kernel has to write is full of NaN before.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "cuda/status.h"
#include "executor.h"

namespace s3h::host {

class Memory {
 public:
  Memory() = default;
  // Full of NaN; aligned to 256, or `skip` bytes behind that.
  explicit Memory(size_t bytes, size_t skip = 0) : bytes_(bytes), skip_(skip) {
    void* memory = nullptr;
    const size_t size = bytes + skip == 0 ? 1 : bytes + skip;
    if (posix_memalign(&memory, 256, size) != 0) std::abort();
    std::memset(memory, 0xff, size);
    memory_.reset(static_cast<unsigned char*>(memory));
  }

  template <typename T = void>
  T* get() const {
    return memory_ == nullptr ? nullptr
                              : reinterpret_cast<T*>(memory_.get() + skip_);
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  size_t bytes_ = 0, skip_ = 0;
};

// numbers, reals and arrays in the order in which kernels.execute got them; the
// first two numbers are multiprocessors and the bytes that arrays are shifted
// by from an address that suits every load.
class Problem {
 public:
  explicit Problem(const char* path) : file_(path, std::ios::binary) {
    numbers_.resize(static_cast<size_t>(count()));
    read(numbers_.data(), numbers_.size() * 8);
    reals_.resize(static_cast<size_t>(count()));
    read(reals_.data(), reals_.size() * 8);
    multiprocessor_count = static_cast<int>(number());
    skip_ = static_cast<size_t>(number());
  }

  int64_t number() { return numbers_.at(next_number_++); }
  double real() { return reals_.at(next_real_++); }
  // Without memory where there is no such array.
  Memory array() {
    const int64_t bytes = count();
    if (bytes < 0) return {};
    Memory memory(static_cast<size_t>(bytes), skip_);
    read(memory.get(), static_cast<size_t>(bytes));
    return memory;
  }
  Memory empty(size_t bytes) const { return Memory(bytes, skip_); }

 private:
  int64_t count() {
    int64_t value = 0;
    read(&value, 8);
    return value;
  }
  void read(void* to, size_t bytes) {
    file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!file_) {
      std::fprintf(stderr, "the problem ends too early\n");
      std::exit(2);
    }
  }

  std::ifstream file_;
  std::vector<int64_t> numbers_;
  std::vector<double> reals_;
  size_t next_number_ = 0, next_real_ = 0, skip_ = 0;
};

class Result {
 public:
  explicit Result(const char* path) : file_(path, std::ios::binary) {}
  void put(const Memory& memory) {
    file_.write(memory.get<char>(),
                static_cast<std::streamsize>(memory.bytes()));
  }
  int status() const { return file_ ? 0 : 2; }

 private:
  std::ofstream file_;
};

inline void check(const cuda::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "launch: %s\n", status.message);
  std::exit(3);
}

}  // namespace s3h::host
