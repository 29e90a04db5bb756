// What the launchers share. Each storage type has its kernels in files of its own (forward_uint8.cu, …), so that they
// compile side by side.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../pixel.h"
#include "../temporal_pool.h"
#include "launch.cuh"

namespace dynpool::cuda {

// Where a launch runs and gets memory.
struct Context {
  int device;
  cudaStream_t stream;
  Allocate allocate;
  void* allocator;

  template <class T>
  T* memory(int64_t count) const {
    return count > 0 ? static_cast<T*>(allocate(count * sizeof(T), allocator)) : nullptr;
  }
  // Blocks that keep every multiprocessor busy.
  int64_t blocks_wanted() const { return int64_t{8} * multiprocessors(device); }
};

template <class X>
void forward(const TemporalPoolParams& p, const Context& context);
template <class X>
void backward(const TemporalPoolParams& p, const Context& context);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline unsigned grid_size(int64_t blocks) {
  if (blocks > INT32_MAX) throw std::runtime_error("CUDA: too many blocks: " + std::to_string(blocks));
  return static_cast<unsigned>(blocks);
}

}  // namespace dynpool::cuda
