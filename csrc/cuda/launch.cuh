// What is CUDA's own: the device guard, the launch check, the one place that says <<<>>>, stores of words, copies to
// shared memory.
#pragma once
#ifdef DYNPOOL_EMULATE_CUDA
#include "emulation.h"
#else
#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace dynpool::cuda {

constexpr int kThreads = 128;              // of a block
constexpr int kChunk = 128;                // frames of windows whose weights are in shared memory
constexpr int kFewFrames = 16;             // that a thread asks for at once
constexpr int64_t kWorthTable = 64 << 20;  // bytes of frames from which on a table of their roots is worth filling

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

// Of a device, whose driver is asked once.
template <cudaDeviceAttr attribute>
int attribute_of(int device) {
  static std::atomic<int> known[64];
  const bool keep = device >= 0 && device < 64;
  int value = keep ? known[device].load(std::memory_order_relaxed) : 0;
  if (value > 0) return value;
  check(cudaDeviceGetAttribute(&value, attribute, device));
  if (keep) known[device].store(value, std::memory_order_relaxed);
  return value;
}

inline int multiprocessors(int device) { return attribute_of<cudaDevAttrMultiProcessorCount>(device); }
// Bytes of a multiprocessor.
inline int shared_memory_of(int device) {
  return attribute_of<cudaDevAttrMaxSharedMemoryPerMultiprocessor>(device);
}

// One instruction; of an assignment, the compiler may make stores of single elements. No kernel reads what it has
// stored, so that no order is asked for. `streams`: as what nobody reads soon.
template <bool streams>
__device__ __forceinline__ void store_word(uint4* to, uint4 word) {
  const size_t address = __cvta_generic_to_global(to);
  if constexpr (streams) {
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w));
  } else {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w));
  }
}

// Read by one instruction, and left out of the first cache, which a stream of words would only wear out: 5 % of memory's
// bandwidth.
__device__ __forceinline__ void stream_word(const void* from, uint32_t (&word)[4]) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "l"(__cvta_generic_to_global(from)));
}
__device__ __forceinline__ void stream_word(const void* from, uint32_t (&word)[2]) {
  asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];"
               : "=r"(word[0]), "=r"(word[1])
               : "l"(__cvta_generic_to_global(from)));
}
__device__ __forceinline__ void stream_word(const void* from, uint32_t (&word)[1]) {
  asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(word[0]) : "l"(__cvta_generic_to_global(from)));
}

// Copies a word to shared memory while the thread goes on. Copies between two end_group belong together.
__device__ __forceinline__ void copy_async(uint4* to, const uint4* from) {
#if __CUDA_ARCH__ >= 800
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const size_t global = __cvta_generic_to_global(from);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" : : "r"(shared), "l"(global) : "memory");
#else
  *to = __ldg(from);
#endif
}

__device__ __forceinline__ void end_group() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

// Until all copies of this thread but those of its last `groups` groups are done.
template <int groups>
__device__ __forceinline__ void wait_for_groups() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(groups) : "memory");
#endif
}

// The shared memory of a launch that asks for some.
template <class T>
__device__ __forceinline__ T& shared_memory() {
  extern __shared__ uint4 dynpool_shared_memory[];
  return *reinterpret_cast<T*>(dynpool_shared_memory);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream, const A&... arguments) {
  if (shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError());
}
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, const A&... arguments) {
  launch(kernel, grid, block, 0, stream, arguments...);
}

}  // namespace dynpool::cuda
#endif
