// Entry points: checks, device guard, storage type.
#include "launchers.h"

namespace dynpool::cuda {
namespace {

// Frames and rows are counted in 32 bits, elements in 64.
void check_sizes(const TemporalPoolParams& p) {
  if (std::max(p.T, p.W) > INT32_MAX / 2) {
    throw std::invalid_argument("T and W must be below 2^30 on CUDA, got " + std::to_string(p.T) + " and " +
                                std::to_string(p.W));
  }
}

}  // namespace

void temporal_pool(const TemporalPoolParams& p, int device, void* stream, Allocate allocate, void* allocator) {
  check_sizes(p);
  if (p.num_outer() * p.inner().size == 0 || p.W == 0) return;
  const DeviceGuard guard(device);
  const Context context{device, static_cast<cudaStream_t>(stream), allocate, allocator};
  switch (p.x_dtype) {
    case DType::uint8: return forward<uint8_t>(p, context);
    case DType::float16: return forward<Half>(p, context);
    case DType::bfloat16: return forward<BFloat16>(p, context);
    case DType::float32: return forward<float>(p, context);
    case DType::float64: return forward<double>(p, context);
  }
}

void temporal_pool_backward(const TemporalPoolParams& p, int device, void* stream, Allocate allocate, void* allocator) {
  check_sizes(p);
  const DeviceGuard guard(device);
  const Context context{device, static_cast<cudaStream_t>(stream), allocate, allocator};
  switch (p.x_dtype) {
    case DType::uint8:
      if (p.dx) throw std::invalid_argument("uint8 frames have no gradient");
      return backward<uint8_t>(p, context);
    case DType::float16: return backward<Half>(p, context);
    case DType::bfloat16: return backward<BFloat16>(p, context);
    case DType::float32: return backward<float>(p, context);
    case DType::float64: return backward<double>(p, context);
  }
}

}  // namespace dynpool::cuda
