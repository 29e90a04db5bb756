// What gradients share: rows' frames, normalisation, sums over a block and over parts.
#pragma once
#include "launchers.h"
#include "patch.cuh"

namespace dynpool::cuda {
namespace {

constexpr int kGradientFrames = 4;

// The frames [begin, end) that a row has of some.
struct Span {
  int begin, end;
  __device__ __forceinline__ bool has(int t) const { return begin <= t && t < end; }
  __device__ __forceinline__ bool empty() const { return begin >= end; }
};

__device__ __forceinline__ Span span_of(const Band& band, int begin, int end) {
  return {max(static_cast<int>(band.first), begin), min(static_cast<int>(band.first + band.count), end)};
}

template <class Acc>
__device__ __forceinline__ const Acc* weights_of(const TemporalPoolParams& p, int64_t clip, int w, const Band& band) {
  return static_cast<const Acc*>(p.weights) + (clip * p.W + w) * p.K - band.first;  // of frame 0
}

// mean and 1/std of a thread's elements.
template <class Acc, int V>
struct Statistics {
  Acc mean[V], inverse_std[V];

  template <Access access>
  __device__ __forceinline__ void read(const TemporalPoolParams& p, const Place<access>& place) {
#pragma unroll
    for (int j = 0; j < V; ++j) mean[j] = 0, inverse_std[j] = 1;
    if (!p.mean && !p.std) return;
    for_each_channel<V>(p, place, [&](int j, int64_t channel) {
      const Normalization<Acc> n = normalization_of<Acc>(p, channel);
      mean[j] = n.mean;
      inverse_std[j] = n.inverse_std;
    });
  }
  __device__ __forceinline__ Acc operator()(Acc x, int j) const { return (x - mean[j]) * inverse_std[j]; }
};

// ψ and ψ' are known to the compiler in the word path, and read from the parameters in the scalar one.
template <Nonlinearity psi, Access access, class Acc>
__device__ __forceinline__ Acc psi_of(const TemporalPoolParams& p, Acc z) {
  if (access == Access::single && p.nonlinearity == Nonlinearity::identity) return z;
  return apply_psi<psi>(z);
}
template <Nonlinearity psi, Access access, class Acc>
__device__ __forceinline__ Acc dpsi_of(const TemporalPoolParams& p, Acc z) {
  if (access == Access::single && p.nonlinearity == Nonlinearity::identity) return Acc(1);
  return apply_dpsi<psi>(z);
}

// M values of each thread of a block; one barrier, then thread m adds up value m of all threads in order.
template <int M>
struct BlockSums {
  double value[M][kThreads + 1];  // the odd pitch spreads the banks

  __device__ __forceinline__ double add(int m) const {
    double sum = 0;
    for (int thread = 0; thread < kThreads; ++thread) sum += value[m][thread];
    return sum;
  }
};

// out[n] = Σ_part partials[part, n], in order; for ∂L/∂A (`banded`) zero where n is past the end of its row's band.
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    add_parts(const TemporalPoolParams p, const double* __restrict__ partials, const int parts, const bool banded,
              const int64_t size, Acc* __restrict__ out) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= size) return;
  const int64_t row = banded ? n / p.K : 0;
  const bool live = !banded || n - row * p.K < band_of(p, row / p.W, row % p.W).count;
  double sum = 0;
  if (live) {
#pragma unroll 8
    for (int part = 0; part < parts; ++part) sum += partials[part * size + n];
  }
  out[n] = static_cast<Acc>(sum);
}

template <class Acc>
void launch_add_parts(const TemporalPoolParams& p, const double* partials, int parts, bool banded, int64_t size,
                      void* out, const Context& context) {
  if (size == 0) return;
  launch(add_parts<Acc>, dim3(grid_size(ceil_div(size, kThreads))), dim3(kThreads), context.stream, p, partials, parts,
         banded, size, static_cast<Acc*>(out));
}

}  // namespace
}  // namespace dynpool::cuda
