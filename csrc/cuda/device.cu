// Which devices there are, and whether what this binary was compiled for runs there.
#include "../temporal_pool.h"
#include "launch.cuh"

#ifndef DYNPOOL_CUDA_ARCHS
#define DYNPOOL_CUDA_ARCHS "emulated"
#endif

namespace dynpool::cuda {
#ifndef DYNPOOL_EMULATE_CUDA
namespace {

__global__ void any_kernel() {}

// Of the driver, or of code that is not for its card; any other may pass, and is the launch's to report.
bool is_lasting(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return true;
    default:
      return false;
  }
}

}  // namespace
#endif

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

const char* trouble_on(int device) {
#ifdef DYNPOOL_EMULATE_CUDA
  return device == 0 ? nullptr : "no such card";
#else
  int former = 0;
  cudaError_t error = cudaGetDevice(&former);
  if (error == cudaSuccess && device != former) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes;  // of code for this card, if there is any
    error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&any_kernel));
    if (device != former) cudaSetDevice(former);
  }
  if (error != cudaSuccess) cudaGetLastError();
  return is_lasting(error) ? cudaGetErrorString(error) : nullptr;
#endif
}

}  // namespace dynpool::cuda
