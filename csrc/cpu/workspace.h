// Memory for one call, kept by the calling thread for the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace s3h::cpu {

// Cache-line aligned arrays in one block: reserve all of them, allocate, then
// get them. The block stays with the calling thread unless it is large. Worker
// threads use the calling thread's memory through at().
class Workspace {
 public:
  // Returns the position of the array: never 0, so that 0 can mean none.
  template <typename T>
  size_t reserve(int64_t count) {
    const size_t at = size_;
    size_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return at;
  }

  void allocate() {
    if (size_ > kept_->capacity) kept_->grow(size_);
  }

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(kept_->base + offset);
  }

  ~Workspace() {
    if (kept_->capacity > kKeep) kept_->release();
  }

 private:
  static constexpr size_t kKeep = size_t{32} << 20;

  struct Kept {
    char* base = nullptr;
    size_t capacity = 0;

    void grow(size_t size) {
      release();
      base = static_cast<char*>(std::aligned_alloc(64, size));
      if (base == nullptr) throw std::bad_alloc();
      capacity = size;
    }
    void release() {
      std::free(base);
      base = nullptr;
      capacity = 0;
    }
    ~Kept() { release(); }
  };

  // Remembers the owner's block, because at() may be called from other threads,
  // which have their own.
  static Kept* of_this_thread() {
    static thread_local Kept mine;
    return &mine;
  }

  Kept* kept_ = of_this_thread();
  size_t size_ = 64;
};

}  // namespace s3h::cpu
