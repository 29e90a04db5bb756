// One pixel: storage types, (x - mean) / std, ψ and ψ'. The only place that has them, for both devices.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "temporal_pool.h"

#ifdef __CUDA_ARCH__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace dynpool {
// The same functions are compiled for several instruction sets, each in an inline namespace of its own.
#ifndef DYNPOOL_ISA
#define DYNPOOL_ISA baseline
#endif
inline namespace DYNPOOL_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class X>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <class To, class From>
DYNPOOL_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// --- storage to Acc -----------------------------------------------------------------------------------------------

DYNPOOL_HOST_DEVICE float load(uint8_t x) { return static_cast<float>(x); }
DYNPOOL_HOST_DEVICE float load(float x) { return x; }
DYNPOOL_HOST_DEVICE double load(double x) { return x; }
DYNPOOL_HOST_DEVICE float load(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

DYNPOOL_HOST_DEVICE float load(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  // Shift exponent and mantissa into place and let one product rebias the exponent, denormals too; branch-free so that
  // loops vectorise.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float value = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
  return bit_cast<float>(bit_cast<uint32_t>(value) | special | sign);
#endif
}

// --- Acc to storage, round to nearest even ------------------------------------------------------------------------

template <class Y>
DYNPOOL_HOST_DEVICE Y store(float v) {
  return static_cast<Y>(v);
}
template <class Y>
DYNPOOL_HOST_DEVICE Y store(double v) {
  return static_cast<Y>(v);
}

template <>
DYNPOOL_HOST_DEVICE BFloat16 store<BFloat16>(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return BFloat16{bits};
#else
  const uint32_t u = bit_cast<uint32_t>(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return BFloat16{static_cast<uint16_t>(v != v ? 0x7fc0u : rounded)};
#endif
}

template <>
DYNPOOL_HOST_DEVICE Half store<Half>(float v) {
#ifdef __CUDA_ARCH__
  return Half{__half_as_ushort(__float2half_rn(v))};
#else
  const uint32_t u = bit_cast<uint32_t>(v);
  const uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  // Normal: rebias, round half to even. Denormal: adding 1/2 aligns the mantissa and rounds it in hardware.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t denormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t bits = magnitude < 0x38800000u ? denormal : normal;
  bits = magnitude >= 0x47800000u ? 0x7c00u : bits;   // 65536 and above
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;    // NaN
  return Half{static_cast<uint16_t>(bits | sign)};
#endif
}

template <>
DYNPOOL_HOST_DEVICE BFloat16 store<BFloat16>(double v) {
  return store<BFloat16>(static_cast<float>(v));
}
template <>
DYNPOOL_HOST_DEVICE Half store<Half>(double v) {
  return store<Half>(static_cast<float>(v));
}

// Two elements of 16 bits, the first of them low: one instruction from sm_80 on.
template <class Y>
DYNPOOL_HOST_DEVICE uint32_t store_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (std::is_same_v<Y, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
#else
  return store<Y>(first).bits | static_cast<uint32_t>(store<Y>(second).bits) << 16;
#endif
}

// --- ψ and ψ' -----------------------------------------------------------------------------------------------------

DYNPOOL_HOST_DEVICE float square_root(float v) {
#ifdef __CUDA_ARCH__
  float root;  // within 2^-23 as well, denormals too
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
#else
  return std::sqrt(v);
#endif
}
DYNPOOL_HOST_DEVICE double square_root(double v) { return std::sqrt(v); }
DYNPOOL_HOST_DEVICE float magnitude(float v) {
#ifdef __CUDA_ARCH__
  return fabsf(v);  // free as an operand's modifier
#else
  return bit_cast<float>(bit_cast<uint32_t>(v) & 0x7fffffffu);
#endif
}
DYNPOOL_HOST_DEVICE double magnitude(double v) { return bit_cast<double>(bit_cast<uint64_t>(v) & 0x7fffffffffffffffull); }
// v ≥ 0 with the sign of another
DYNPOOL_HOST_DEVICE float with_sign(float v, float sign) {
  return bit_cast<float>(bit_cast<uint32_t>(v) | (bit_cast<uint32_t>(sign) & 0x80000000u));
}
DYNPOOL_HOST_DEVICE double with_sign(double v, double sign) {
  return bit_cast<double>(bit_cast<uint64_t>(v) | (bit_cast<uint64_t>(sign) & 0x8000000000000000ull));
}

// √v where a denormal v may count as 0, as it may for bytes: one instruction of the GPU, within 2^-23.
DYNPOOL_HOST_DEVICE float quick_root(float v) {
#ifdef __CUDA_ARCH__
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
#else
  return std::sqrt(v);
#endif
}

// ψ(z): z, or the signed root sign(z)·√|z|.
template <Nonlinearity psi, class Acc>
DYNPOOL_HOST_DEVICE Acc apply_psi(Acc z) {
  if constexpr (psi == Nonlinearity::identity) return z;
  return with_sign(square_root(magnitude(z)), z);
}

// 1 / √v, v ≥ 0
DYNPOOL_HOST_DEVICE float inverse_root(float v) {
#ifdef __CUDA_ARCH__
  float reciprocal;  // within 2^-22: one instruction for a root and a division
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(reciprocal) : "f"(v));
  return reciprocal;
#else
  return 1.0f / std::sqrt(v);
#endif
}
DYNPOOL_HOST_DEVICE double inverse_root(double v) { return 1.0 / std::sqrt(v); }

// The same where a denormal v may count as 0: without its scaling, a quarter of the instructions.
DYNPOOL_HOST_DEVICE float quick_inverse_root(float v) {
#ifdef __CUDA_ARCH__
  float reciprocal;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(v));
  return reciprocal;
#else
  return 1.0f / std::sqrt(v);
#endif
}

// ψ'(z): 1, or 1 / (2√|z|), which is taken as 0 at z = 0.
template <Nonlinearity psi, class Acc>
DYNPOOL_HOST_DEVICE Acc apply_dpsi(Acc z) {
  if constexpr (psi == Nonlinearity::identity) return Acc(1);
  const Acc slope = Acc(0.5) * inverse_root(magnitude(z));
  return z == Acc(0) ? Acc(0) : slope;
}

// Normalisation. ψ is multiplicative and the signed root of a product is the product of signed roots, so that without a
// mean a division by std moves after the sum over frames, and for the identity so does the mean:
//   Σ A ψ(x / s) = ψ(1/s) Σ A ψ(x)          Σ A (x - m) / s = (Σ A x - m Σ A) / s
// Only ψ = √ with a mean has to normalise every pixel ("inside").
template <Nonlinearity psi>
DYNPOOL_HOST_DEVICE bool normalizes_inside(const TemporalPoolParams& p) {
  return psi != Nonlinearity::identity && p.mean != nullptr;
}

template <class Acc>
struct Normalization {
  Acc mean, inverse_std;
};

DYNPOOL_HOST_DEVICE float reciprocal(float v) {
#ifdef __CUDA_ARCH__
  float inverse;  // within 2^-23, in a few instructions for the twenty of a division; of large v it is subnormal
  asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(v));
  return inverse;
#else
  return 1.0f / v;
#endif
}
DYNPOOL_HOST_DEVICE double reciprocal(double v) { return 1.0 / v; }

template <class Acc>
DYNPOOL_HOST_DEVICE Normalization<Acc> normalization_of(const TemporalPoolParams& p, int64_t channel) {
  return {p.mean ? static_cast<const Acc*>(p.mean)[channel] : Acc(0),
          p.std ? reciprocal(static_cast<const Acc*>(p.std)[channel]) : Acc(1)};
}

}  // namespace DYNPOOL_ISA
}  // namespace dynpool
