// Which devices there are, and which this binary was compiled for.
#include "../temporal_pool.h"
#include "launch.cuh"

#ifndef DYNPOOL_CUDA_ARCHS
#define DYNPOOL_CUDA_ARCHS "emulated"
#endif

namespace dynpool::cuda {

int device_count() {
#ifdef DYNPOOL_EMULATE_CUDA
  return 1;
#else
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver: forget the error
  return 0;
#endif
}

const char* architectures() { return DYNPOOL_CUDA_ARCHS; }

}  // namespace dynpool::cuda
