// What the compiler does not vectorise well by itself: widening narrow pixels, and roots.
//
// A vector root takes 11 cycles for 16 floats, a root and a division 20. A reciprocal root of 14 bits (12 with AVX2) and
// one Newton step, exact to 2 ulp, take 6.
#pragma once
#include <cstring>
#include <type_traits>

#include "../pixel.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

#if defined(__AVX512F__)

using Floats = __m512;
constexpr int64_t kVector = 16;

// Where plain loops are slower.
template <class X, Nonlinearity psi>
constexpr bool has_vectors = !std::is_same<X, double>::value &&
                             !(std::is_same<X, float>::value && psi == Nonlinearity::identity);

inline Floats floats_of(const uint8_t* x) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
inline Floats floats_of(const Half* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline Floats floats_of(const BFloat16* x) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
inline Floats floats_of(const float* x) { return _mm512_loadu_ps(x); }

// The first n < kVector, zeros after them.
inline Floats floats_of(const uint8_t* x, int n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(static_cast<__mmask16>((1 << n) - 1), x)));
}
inline Floats floats_of(const Half* x, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1 << n) - 1), x));
}
inline Floats floats_of(const BFloat16* x, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1 << n) - 1), x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats floats_of(const float* x, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << n) - 1), x); }

// Lane k: the sum of the lanes of vector k. (s is overwritten.)
inline Floats lane_sums(Floats (&s)[kVector]) {
  for (int k = 0; k < 8; ++k) s[k] = _mm512_unpacklo_ps(s[2 * k], s[2 * k + 1]) + _mm512_unpackhi_ps(s[2 * k], s[2 * k + 1]);
  for (int k = 0; k < 4; ++k) {
    const __m512d a = _mm512_castps_pd(s[2 * k]), b = _mm512_castps_pd(s[2 * k + 1]);
    s[k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  const auto quarters = [](Floats a, Floats b) {
    return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
  };
  return quarters(quarters(s[0], s[1]), quarters(s[2], s[3]));
}

// 0 and infinity have no Newton step.
inline __mmask16 extreme(Floats m) {
  constexpr int kZeros = 0x02 | 0x04, kInfinities = 0x08 | 0x10;
  return _mm512_fpclass_ps_mask(m, kZeros | kInfinities);
}

// sign(z) √|z|
template <class X>
Floats signed_root(Floats z) {
  constexpr bool bytes = std::is_same<X, uint8_t>::value;  // 0 … 255
  const Floats m = bytes ? z : _mm512_abs_ps(z);
  const Floats r = _mm512_rsqrt14_ps(bytes ? _mm512_max_ps(m, _mm512_set1_ps(0.5f)) : m), s = _mm512_mul_ps(m, r);
  const Floats error = _mm512_fnmadd_ps(s, r, _mm512_set1_ps(1));
  const Floats root = _mm512_fmadd_ps(_mm512_mul_ps(s, _mm512_set1_ps(0.5f)), error, s);
  if (bytes) return root;
  const Floats safe = _mm512_mask_mov_ps(root, extreme(m), m);
  constexpr int kSelect = 0xca;  // a ? b : c, by bits
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_set1_epi32(0x7fffffff), _mm512_castps_si512(safe),
                                                       _mm512_castps_si512(z), kSelect));
}

// ψ'(z) for ψ = √
inline Floats root_derivative(Floats z) {
  const Floats m = _mm512_abs_ps(z), r = _mm512_rsqrt14_ps(m);
  const Floats step = _mm512_fnmadd_ps(_mm512_mul_ps(m, r), _mm512_mul_ps(r, _mm512_set1_ps(0.25f)),
                                       _mm512_set1_ps(0.75f));  // (3 - m r²) / 4
  return _mm512_maskz_mul_ps(_knot_mask16(extreme(m)), r, step);
}

#elif defined(__AVX2__)

using Floats = __m256;
constexpr int64_t kVector = 8;

template <class X, Nonlinearity psi>
constexpr bool has_vectors = std::is_same<X, uint8_t>::value;

inline Floats floats_of(const uint8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
inline Floats floats_of(const float* x) { return _mm256_loadu_ps(x); }

// √z for z = 0 … 255
template <class X>
Floats signed_root(Floats z) {
  const Floats r = _mm256_rsqrt_ps(_mm256_max_ps(z, _mm256_set1_ps(0.5f))), s = _mm256_mul_ps(z, r);
  const Floats error = _mm256_fnmadd_ps(s, r, _mm256_set1_ps(1));
  return _mm256_fmadd_ps(_mm256_mul_ps(s, _mm256_set1_ps(0.5f)), error, s);
}

#else

using Floats = float;
constexpr int64_t kVector = 1;

template <class X, Nonlinearity psi>
constexpr bool has_vectors = false;

template <class X>
Floats floats_of(const X* x);
template <class X>
Floats signed_root(Floats z);

#endif

// --- bytes in pairs of vectors of 16 bits ---------------------------------------------------------------------------

#ifdef __AVX2__

#ifdef __AVX512BW__
using Words = __m512i;
inline Words load_words(const void* x) { return _mm512_loadu_si512(x); }
// The first bytes, zeros after them.
inline Words load_words(const void* x, int64_t bytes) {
  const __mmask64 mask = bytes >= 64 ? ~__mmask64(0) : bytes > 0 ? (__mmask64(1) << bytes) - 1 : 0;
  return _mm512_maskz_loadu_epi8(mask, x);
}
inline void store_words(void* x, Words a) { _mm512_storeu_si512(x, a); }
// 32 bytes, or those of either half of each lane of 64 beside those of y.
inline Words words_of(const uint8_t* x) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline Words words_of(const uint8_t* x, int64_t n) {
  return _mm512_cvtepu8_epi16(_mm512_castsi512_si256(load_words(x, n)));
}
inline Words low_bytes(Words x, Words y) { return _mm512_unpacklo_epi8(x, y); }
inline Words high_bytes(Words x, Words y) { return _mm512_unpackhi_epi8(x, y); }
inline Words twice_low(Words x) { return _mm512_unpacklo_epi16(x, x); }
inline Words twice_high(Words x) { return _mm512_unpackhi_epi16(x, x); }
inline Words word(uint16_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
inline Words high_half(Words a, Words b) { return _mm512_mulhi_epi16(a, b); }
inline Words clipped(Words low, Words high) { return _mm512_packus_epi16(low, high); }
inline Words sum(Words a, Words b) { return _mm512_add_epi16(a, b); }
inline Words difference(Words a, Words b) { return _mm512_sub_epi16(a, b); }
inline Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
inline Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
inline Words shifted(Words a, int bits) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(bits)); }
// Of 128 bits each, of a and then b.
inline Words even_lanes(Words a, Words b) { return _mm512_shuffle_i64x2(a, b, 0x88); }
inline Words odd_lanes(Words a, Words b) { return _mm512_shuffle_i64x2(a, b, 0xdd); }
// Σ of the products of unsigned bytes and signed ones, in pairs.
inline Words byte_products(Words x, Words y) { return _mm512_maddubs_epi16(x, y); }
#else
using Words = __m256i;
inline Words load_words(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
inline Words load_words(const void* x, int64_t bytes) {
  alignas(32) char first[32] = {};
  memcpy(first, x, bytes >= 32 ? 32 : bytes > 0 ? static_cast<size_t>(bytes) : 0);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(first));
}
inline void store_words(void* x, Words a) { _mm256_storeu_si256(static_cast<__m256i*>(x), a); }
inline Words words_of(const uint8_t* x) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline Words words_of(const uint8_t* x, int64_t n) {
  return _mm256_cvtepu8_epi16(_mm256_castsi256_si128(load_words(x, n)));
}
inline Words low_bytes(Words x, Words y) { return _mm256_unpacklo_epi8(x, y); }
inline Words high_bytes(Words x, Words y) { return _mm256_unpackhi_epi8(x, y); }
inline Words twice_low(Words x) { return _mm256_unpacklo_epi16(x, x); }
inline Words twice_high(Words x) { return _mm256_unpackhi_epi16(x, x); }
inline Words word(uint16_t x) { return _mm256_set1_epi16(static_cast<short>(x)); }
inline Words high_half(Words a, Words b) { return _mm256_mulhi_epi16(a, b); }
inline Words clipped(Words low, Words high) { return _mm256_packus_epi16(low, high); }
inline Words sum(Words a, Words b) { return _mm256_add_epi16(a, b); }
inline Words difference(Words a, Words b) { return _mm256_sub_epi16(a, b); }
inline Words either(Words a, Words b) { return _mm256_or_si256(a, b); }
inline Words both(Words a, Words b) { return _mm256_and_si256(a, b); }
inline Words shifted(Words a, int bits) { return _mm256_sll_epi16(a, _mm_cvtsi32_si128(bits)); }
inline Words even_lanes(Words a, Words b) { return _mm256_permute2x128_si256(a, b, 0x20); }
inline Words odd_lanes(Words a, Words b) { return _mm256_permute2x128_si256(a, b, 0x31); }
// Σ of the products of unsigned bytes and signed ones, in pairs.
inline Words byte_products(Words x, Words y) { return _mm256_maddubs_epi16(x, y); }
#endif

#endif

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
