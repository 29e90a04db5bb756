// What happens to a pixel inside a forward sum, and what type the sum has then.
#pragma once
#include "launchers.h"

namespace dynpool::cuda {
namespace {

// `known_root`: of bytes, looked up. `any`: normalisation, and ψ as the parameters say; for the scalar path, whose loads
// hide it.
enum class Mode { identity, root, known_root, normalized_root, any };

template <Mode mode, class X, class Acc>
__device__ __forceinline__ Acc plain_pixel(Acc x) {
  if constexpr (mode == Mode::identity) return x;
  if constexpr (sizeof(X) == 1) return quick_root(x);
  if constexpr (std::is_same_v<X, Half>) return with_sign(quick_root(magnitude(x)), x);  // no denormal number of Acc
  return apply_psi<Nonlinearity::sqrt>(x);
}

// Type of y.
template <class X>
using Natural = std::conditional_t<sizeof(X) == 1, float, X>;
template <class X>
bool is_natural(const TemporalPoolParams& p) {
  return p.y_dtype == (sizeof(X) == 1 ? DType::float32 : p.x_dtype);
}

// Roots of bytes, a copy for each bank of shared memory, for cards that have much of it: there the unit for roots is no
// faster than memory. Rows are 256 bytes apart, so that one permutation of bytes makes the offset.
struct Roots {
  static constexpr int kBanks = 32;
  alignas(16) float root[256][2 * kBanks];  // half of it unused

  __device__ __forceinline__ void fill(int threads) {
    for (int i = threadIdx.x; i < 256 * kBanks / 4; i += threads) {
      const float r = quick_root(static_cast<float>(i / (kBanks / 4)));
#pragma unroll
      for (int k = 0; k < 4; ++k) root[i / (kBanks / 4)][i % (kBanks / 4) * 4 + k] = r;
    }
    __syncthreads();
  }
  __device__ __forceinline__ float of_byte(uint32_t word, int j) const {
    const uint32_t offset = __byte_perm(word, threadIdx.x % kBanks * 4, 0x5504u | j << 4);
    return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(root) + offset);
  }
};

// In place of what a kernel does without.
struct Nothing {};

}  // namespace
}  // namespace dynpool::cuda
