// Threads for the native tests: no pool, so that the thread sanitizer sees
// every start and join.
#pragma once

#include <thread>

#include "../cpu/threads.h"

const s3h::cpu::Threads kOneThread{
    1, [](int64_t begin, int64_t end, const s3h::cpu::RangeFunction& body) {
      body(begin, end);
    }};

// The two halves differ in size if the range is odd.
const s3h::cpu::Threads kThreads{
    2, [](int64_t begin, int64_t end, const s3h::cpu::RangeFunction& body) {
      const int64_t middle = begin + (end - begin + 1) / 2;
      std::thread other([&] {
        if (middle < end) body(middle, end);
      });
      if (begin < middle) body(begin, middle);
      other.join();
    }};
