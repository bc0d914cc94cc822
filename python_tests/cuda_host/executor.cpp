// See executor.h. This file is compiled without the thread sanitizer: what the
// executor itself does is no access of a CUDA thread.
#include "executor.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>

#ifdef S3H_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

namespace s3h::host {

int multiprocessor_count = 4;
size_t shared_limit = 227 * 1024;
int64_t launch_count = 0;

namespace {

constexpr unsigned kNoOrder = 1;  // a switch of fibers orders nothing
constexpr size_t kStack = 256 * 1024;
constexpr int kMaxThreads = 256;
constexpr size_t kMaxData = 64;
// Blocks in turn get different fibers, or accesses of two blocks by threads of
// one number would look ordered.
constexpr int kSets = 2;

enum class State { kReady, kAtBarrier, kTogether, kDone };

struct Fiber {
  Thread thread;
  State state;
  ucontext_t context;
  void* sanitizer;
  unsigned char* stack;
};

struct Warp {
  Together what;
  Place where;
  int arrived;
  alignas(16) unsigned char in[32 * kMaxData];
  alignas(16) unsigned char out[32 * kMaxData];
  // The sanitizer's names for the warp's barriers, in turn: who leaves one late
  // must not seem to have waited for who has reached the next.
  char orders[2];
  unsigned met;
};

Fiber* sets[kSets] = {};
Fiber* fibers = nullptr;  // of the block at work
Warp warps[kMaxThreads / 32];
int threads = 0, at_barrier = 0, done = 0;
char barrier_orders[2], launch_order, end_order;
unsigned barriers = 0;  // passed; names in turn, as for warps
ucontext_t main_context;
void* main_sanitizer = nullptr;
const Launch* launch = nullptr;
uint64_t random_state = 0;
Fiber* self = nullptr;

// Not memcpy: the sanitizer would take it for an access.
void copy(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<volatile unsigned char*>(to);
  const auto* source = static_cast<const volatile unsigned char*>(from);
  for (size_t i = 0; i < bytes; ++i) target[i] = source[i];
}

uint32_t random_number() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(random_state >> 33);
}

void switch_to(ucontext_t& from, Fiber& next) {
  self = &next;
  __tsan_switch_to_fiber(next.sanitizer, kNoOrder);
  swapcontext(&from, &next.context);
}

// Runs any other thread that can; back to the launch when all are done.
void pass_on() {
  Fiber& from = *self;
  if (done == threads) {
    __tsan_switch_to_fiber(main_sanitizer, kNoOrder);
    swapcontext(&from.context, &main_context);
    return;
  }
  // The rest of a warp first as a rule, else anyone: both orders happen.
  const int start = random_number() % 8 == 0
                        ? static_cast<int>(random_number() % threads)
                        : from.thread.index + 1;
  for (int i = 0; i < threads; ++i) {
    Fiber& next = fibers[(start + i) % threads];
    if (next.state != State::kReady) continue;
    if (&next != &from) switch_to(from.context, next);
    return;
  }
  fail(
      "deadlock: some threads wait at a barrier or for their warp, and the "
      "others wait elsewhere or have ended");
}

void release_barrier() {
  at_barrier = 0;
  ++barriers;
  for (int i = 0; i < threads; ++i)
    if (fibers[i].state == State::kAtBarrier) fibers[i].state = State::kReady;
}

void begin() {
  __tsan_acquire(&launch_order);
  launch->body(launch->arguments);
  __tsan_release(&end_order);
  self->state = State::kDone;
  ++done;
  // A thread that has ended counts as being at every barrier.
  if (at_barrier > 0 && at_barrier + done == threads) release_barrier();
  pass_on();
  fail("a thread that had ended was run again");
}

void make_set(Fiber*& set) {
  set = static_cast<Fiber*>(std::calloc(kMaxThreads, sizeof(Fiber)));
  for (int i = 0; i < kMaxThreads; ++i) {
    set[i].stack = static_cast<unsigned char*>(std::malloc(kStack));
    set[i].sanitizer = __tsan_create_fiber(0);
  }
}

// A function of its own: getcontext may return twice as far as gcc knows.
void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, begin, 0);
}

void run_block(Index block, unsigned char* shared, int set) {
  if (sets[set] == nullptr) make_set(sets[set]);
  fibers = sets[set];
  done = at_barrier = 0;
  for (Warp& warp : warps) warp.arrived = 0;
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.state = State::kReady;
    fiber.thread.index = i;
    fiber.thread.threads = threads;
    fiber.thread.block = block;
    fiber.thread.grid = launch->grid;
    fiber.thread.shared = shared;
    fiber.thread.shared_bytes = launch->shared_bytes;
    fiber.thread.copy_count = fiber.thread.group_count = 0;
    prepare(fiber);
  }
  switch_to(main_context, fibers[random_number() % threads]);
}

// The function's name tells instances of a template apart.
bool same_place(const Place& a, const Place& b) {
  const auto equal = [](const char* x, const char* y) {
    return x == y || std::strcmp(x, y) == 0;
  };
  return a.line() == b.line() && a.column() == b.column() &&
         equal(a.file_name(), b.file_name()) &&
         equal(a.function_name(), b.function_name());
}

}  // namespace

void fail(const char* message) {
  const Index& block = self->thread.block;
  std::fprintf(stderr, "executor: block (%d, %d, %d), thread %d: %s\n", block.x,
               block.y, block.z, self->thread.index, message);
  std::_Exit(70);
}

Thread& current() { return self->thread; }

void block_barrier() {
  char* order = &barrier_orders[barriers % 2];
  __tsan_release(order);
  ++at_barrier;
  if (at_barrier + done == threads) {
    release_barrier();
  } else {
    self->state = State::kAtBarrier;
    pass_on();
  }
  __tsan_acquire(order);
}

void together(Together what, const Place& where, const void* in,
              size_t in_bytes, void* out, size_t out_bytes,
              void (*all)(const void*, void*)) {
  if (in_bytes > kMaxData || out_bytes > kMaxData) fail("data too large");
  const int lane = self->thread.index % 32;
  const int first = self->thread.index - lane;
  Warp& warp = warps[first / 32];
  char* order = &warp.orders[warp.met % 2];
  if (what == Together::kBarrier) __tsan_release(order);
  if (warp.arrived == 0) {
    warp.what = what;
    warp.where = where;
  }
  if (warp.what != what || !same_place(warp.where, where))
    fail("the lanes of a warp met at other instructions");
  copy(warp.in + lane * in_bytes, in, in_bytes);
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.met;
    all(warp.in, warp.out);
    for (int i = first; i < first + 32; ++i) fibers[i].state = State::kReady;
  } else {
    self->state = State::kTogether;
    pass_on();
  }
  // A warp cannot meet again before all of its lanes have been here.
  copy(out, warp.out + lane * out_bytes, out_bytes);
  if (what == Together::kBarrier) __tsan_acquire(order);
}

void run(const Launch& what) {
  const char* seed = std::getenv("S3H_EXECUTOR_SEED");
  random_state = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
  random_number();
  launch = &what;
  threads = what.threads;
  if (threads > kMaxThreads || threads % 32 != 0) {
    std::fprintf(stderr, "executor: %d threads in a block\n", threads);
    std::_Exit(70);
  }
  main_sanitizer = __tsan_get_current_fiber();
  const int64_t blocks =
      static_cast<int64_t>(what.grid.x) * what.grid.y * what.grid.z;
  // Allocated before and released after all blocks: the sanitizer would take
  // either for an access that the threads are not ordered with.
  auto** shared =
      static_cast<unsigned char**>(std::calloc(blocks, sizeof(void*)));
  for (int64_t i = 0; i < blocks; ++i) {
    const size_t bytes = what.shared_bytes == 0 ? 1 : what.shared_bytes;
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes) != 0) std::_Exit(70);
    shared[i] = static_cast<unsigned char*>(memory);
    for (size_t b = 0; b < bytes; ++b)
      static_cast<volatile unsigned char*>(shared[i])[b] = 0xff;
  }
  __tsan_release(&launch_order);
  // Blocks run in an order that no kernel may rely on.
  const int64_t offset = random_number() % blocks;
  const bool backwards = random_number() % 2 == 1;
  for (int64_t i = 0; i < blocks; ++i) {
    int64_t at = (i + offset) % blocks;
    if (backwards) at = blocks - 1 - at;
    const int64_t plane = static_cast<int64_t>(what.grid.x) * what.grid.y;
    run_block({static_cast<int>(at % what.grid.x),
               static_cast<int>(at / what.grid.x % what.grid.y),
               static_cast<int>(at / plane)},
              shared[at], static_cast<int>(i % kSets));
  }
  __tsan_acquire(&end_order);
  for (int64_t i = 0; i < blocks; ++i) std::free(shared[i]);
  std::free(shared);
}

}  // namespace s3h::host
