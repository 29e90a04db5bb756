// A launch on the host: the .cu files compiled as C++ (-x c++ -DDYNPOOL_EMULATE_CUDA), for tests without a GPU.
//
// Blocks run one after another. The first thread of a block runs as a fiber; if it comes to its end without a barrier,
// the others are plain calls. Otherwise each thread is a fiber that __syncthreads suspends. "Device memory" is host
// memory, and a launch is over when it returns.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#include <setjmp.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
using cudaStream_t = void*;
using std::max;
using std::min;

namespace dynpool::cuda::emulation {

constexpr size_t kStack = 256 * 1024;

// A second stack to run on. AddressSanitizer is told of every switch.
class Fiber {
 public:
  Fiber() : stack_(new char[kStack]) {}

  template <class Body>
  void start(Body& body) {
    body_ = [](void* b) { (*static_cast<Body*>(b))(); };
    argument_ = &body;
    done_ = false;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(stack_.get(), kStack);
#endif
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    const uintptr_t self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
    switched_ = false;
    resume();
  }

  void resume() {
    void* fake_stack = nullptr;
    before_switch(&fake_stack, stack_.get(), kStack);
#if defined(__SANITIZE_ADDRESS__)
    swapcontext(&caller_, &context_);
#else
    if (!_setjmp(caller_)) switched_ ? _longjmp(here_, 1) : static_cast<void>(setcontext(&context_));
#endif
    after_switch(fake_stack);
  }

  void suspend() {
    void* fake_stack = nullptr;
    before_switch(done_ ? nullptr : &fake_stack, caller_stack_, caller_size_);
#if defined(__SANITIZE_ADDRESS__)
    swapcontext(&context_, &caller_);
#else
    switched_ = true;
    if (!_setjmp(here_)) _longjmp(caller_, 1);
#endif
    after_switch(fake_stack, &caller_stack_, &caller_size_);
  }

  bool done() const { return done_; }

 private:
  static void enter(unsigned high, unsigned low) {
    Fiber* self = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
    after_switch(nullptr, &self->caller_stack_, &self->caller_size_);
    self->body_(self->argument_);
    self->done_ = true;
    self->suspend();
  }

  static void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                            [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake_stack, stack, size);
#endif
  }
  static void after_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** stack = nullptr,
                           [[maybe_unused]] size_t* size = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, stack, size);
#endif
  }

  std::unique_ptr<char[]> stack_;
  ucontext_t context_;
#if defined(__SANITIZE_ADDRESS__)
  ucontext_t caller_;
#else
  jmp_buf here_, caller_;  // swapcontext makes system calls
#endif
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool done_ = true, switched_ = false;
};

// The thread that runs now.
struct Thread {
  dim3 thread, block, block_dim, grid_dim;
  Fiber* fiber = nullptr;
};
inline thread_local Thread now;

// Copies to shared memory of one thread that are under way, in groups; the last one is still open.
struct Copy {
  uint4* to;
  uint4 word;
};
using Groups = std::vector<std::vector<Copy>>;
inline std::vector<Groups>& groups_of_threads() {
  static thread_local std::vector<Groups> groups;
  return groups;
}
inline Groups& copies() { return groups_of_threads()[now.thread.x]; }

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline void barrier() {
  if (!now.fiber) fail("a barrier that the first thread of the block did not come to");
  now.fiber->suspend();
}

inline std::vector<Fiber>& fibers() {
  static thread_local std::vector<Fiber> pool;
  return pool;
}

template <class Body>
void run_block(Body& body) {
  const dim3 size = now.block_dim;
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z;
  const auto enter = [size](size_t i, Fiber* fiber) {
    now.thread = dim3(static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
                      static_cast<unsigned>(i / size.x / size.y));
    now.fiber = fiber;
  };
  groups_of_threads().assign(count, Groups(1));
  std::vector<Fiber>& fiber = fibers();
  if (fiber.size() < count) fiber = std::vector<Fiber>(count);

  enter(0, &fiber[0]);
  fiber[0].start(body);
  if (fiber[0].done()) {
    for (size_t i = 1; i < count; ++i) {
      enter(i, nullptr);
      body();
    }
    return;
  }
  for (size_t i = 1; i < count; ++i) {
    enter(i, &fiber[i]);
    fiber[i].start(body);
  }
  while (true) {  // all threads stand at a barrier, or all are done
    for (size_t i = 1; i < count; ++i)
      if (fiber[i].done() != fiber[0].done()) fail("a barrier that some threads of the block did not come to");
    if (fiber[0].done()) return;
    for (size_t i = 0; i < count; ++i) {
      enter(i, &fiber[i]);
      fiber[i].resume();
    }
  }
}

}  // namespace dynpool::cuda::emulation

#define threadIdx (::dynpool::cuda::emulation::now.thread)
#define blockIdx (::dynpool::cuda::emulation::now.block)
#define blockDim (::dynpool::cuda::emulation::now.block_dim)
#define gridDim (::dynpool::cuda::emulation::now.grid_dim)
#define __syncthreads() ::dynpool::cuda::emulation::barrier()

template <class V>
V __ldg(const V* address) {
  return *address;
}

template <size_t N>
void stream_word(const void* from, uint32_t (&word)[N]) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof word) dynpool::cuda::emulation::fail("a word that is not aligned");
  const auto* words = static_cast<const uint32_t*>(from);
  std::copy(words, words + N, word);
}

template <bool streams>
void store_word(uint4* to, uint4 word) {
  *to = word;
}

// Copies are made as late as a card may make them: when they are waited for.
inline void copy_async(uint4* to, const uint4* from) {
  dynpool::cuda::emulation::copies().back().push_back({to, *from});
}
inline void end_group() { dynpool::cuda::emulation::copies().emplace_back(); }
template <int groups>
void wait_for_groups() {
  auto& open = dynpool::cuda::emulation::copies();
  for (; open.size() > groups + 1; open.erase(open.begin()))
    for (const auto& copy : open.front()) *copy.to = copy.word;
}

// Bytes of the eight in (y, x) that the digits of `selector` choose.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

// The upper (lower) half of (high, low) << (>>) shift % 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

namespace dynpool::cuda {

// A small card, so that small tensors are already too large or too small for it.
constexpr int kThreads = 32;
constexpr int kChunk = 8;
constexpr int kFewFrames = 3;
constexpr int64_t kWorthTable = 1 << 12;
inline int multiprocessors(int) { return 2; }
inline int shared_memory_of(int) {
  const char* given = std::getenv("DYNPOOL_EMULATED_SHARED_MEMORY");  // bytes
  return given ? std::atoi(given) : 1 << 20;
}

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

// The shared memory of a launch that asks for some: as much as it asks for, and nothing in it, for every block.
inline std::unique_ptr<char[]>& shared_memory_of_launch() {
  static thread_local std::unique_ptr<char[]> memory;
  return memory;
}
template <class T>
T& shared_memory() {
  return *reinterpret_cast<T*>(shared_memory_of_launch().get());
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t, const A&... arguments) {
  if (grid.y > 65535 || grid.z > 65535) emulation::fail("a grid of more than 65535 blocks in y or z");
  const emulation::Thread outside = emulation::now;
  auto body = [&] { kernel(arguments...); };
  emulation::now.grid_dim = grid;
  emulation::now.block_dim = block;
  shared_memory_of_launch().reset(new char[shared_bytes]);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        emulation::now.block = dim3(x, y, z);
        std::fill_n(shared_memory_of_launch().get(), shared_bytes, '\xff');
        emulation::run_block(body);
      }
  emulation::now = outside;
}
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, const A&... arguments) {
  launch(kernel, grid, block, 0, stream, arguments...);
}

}  // namespace dynpool::cuda
