// What is CUDA's own: the device guard, the launch check, the one place that says <<<>>>, and stores of words.
#pragma once
#ifdef DYNPOOL_EMULATE_CUDA
#include "emulation.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace dynpool::cuda {

constexpr int kThreads = 128;  // of a block

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch, which may be right, would report it
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Makes `device` current, and the former one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&former_));
    if (device != former_) check(cudaSetDevice(device));
    changed_ = device != former_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

inline int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Whether words of ∂L/∂x are stored as what nobody reads soon (evicted first). To be measured.
constexpr bool kStreamingStores = false;

// One instruction; of an assignment, the compiler may make stores of single elements. No kernel reads what it has
// stored, so that no order is asked for.
template <class Word>
__device__ __forceinline__ void store_word(Word* to, Word word) {
  const size_t address = __cvta_generic_to_global(to);
  if constexpr (sizeof(Word) == 16 && kStreamingStores) {
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w));
  } else if constexpr (sizeof(Word) == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w));
  } else if constexpr (sizeof(Word) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" : : "l"(address), "r"(word.x), "r"(word.y));
  } else {
    *to = word;
  }
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, const A&... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace dynpool::cuda
#endif
