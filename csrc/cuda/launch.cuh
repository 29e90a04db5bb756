// Launching: the device guard, the launch check, and the one place that says <<<>>>.
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
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
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

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, const A&... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace dynpool::cuda
#endif
