// The solvers of exact rank pooling, a block a clip: sweeps follow one another, but their updates, products and checks
// are the work of all threads.
#include "../solver.h"

#include "launchers.h"

namespace dynpool::cuda {
namespace {

struct Block {
  double* shared;  // [kThreads]

  template <class Body>
  __device__ void each(int64_t n, const Body& body) const {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) body(i);
    __syncthreads();
  }
  template <class Body>
  __device__ void lanes(int64_t n, const Body& body) const {
    each(n, body);
  }
  template <class Body>
  __device__ double sum(int64_t n, const Body& body) const {
    double total = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) total += body(i);
    shared[threadIdx.x] = total;
    __syncthreads();
    for (unsigned half = kThreads / 2; half; half /= 2) {
      if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
      __syncthreads();
    }
    total = shared[0];
    __syncthreads();
    return total;
  }
  template <class Body>
  __device__ void one(const Body& body) const {
    if (leads()) body();
    __syncthreads();
  }
  __device__ bool leads() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncthreads(); }
};

__global__ void __launch_bounds__(kThreads, 1) solver_kernel(SolverParams p) {
  __shared__ double shared[kThreads];
  solve_clip(p, blockIdx.x, Block{shared});
}

}  // namespace

void solve(const SolverParams& p, int device, void* stream) {
  if (p.clips == 0 || p.T == 0) return;
  const DeviceGuard guard(device);
  launch(solver_kernel, dim3(grid_size(p.clips)), dim3(kThreads), static_cast<cudaStream_t>(stream), p);
}

}  // namespace dynpool::cuda
