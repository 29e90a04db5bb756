// ψ((x - mean) / std) of uint8 pixels by table: 256 values, 64 pixels at a time with AVX-512 VBMI.
//
// The four bytes of the float results are four tables of 256 bytes, each in four registers; two byte permutations and a
// blend look 64 pixels up in one of them, and unpacking interleaves the four into floats. That is 4 pixels a cycle,
// exact, whatever ψ and the normalisation are, where a vector square root gives 1.5 and a Newton step 2.
//
// Unpacking works within 128-bit lanes, so 64 consecutive pixels come out in "lane order": sums are kept in that order
// and put right once, at the end (`natural_order`).
#pragma once
#include <type_traits>

#ifdef __AVX512VBMI__
#include <immintrin.h>
#endif

#include "../pixel.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int64_t kBlock = 64;

#ifdef __AVX512VBMI__
constexpr bool kHasLookup = true;
#else
constexpr bool kHasLookup = false;
#endif

// Without ψ, converting a pixel is quicker than looking it up.
template <class X, Nonlinearity psi>
constexpr bool looks_up = kHasLookup && std::is_same<X, uint8_t>::value && psi == Nonlinearity::sqrt;

struct LookupTable {
  alignas(64) uint8_t bytes[4][256];  // byte b of the result for each pixel value

  template <Nonlinearity psi>
  void fill(Normalization<float> c) {
    for (int v = 0; v < 256; ++v) {
      const float value = apply_psi<psi>((static_cast<float>(v) - c.mean) * c.inverse_std);
      for (int b = 0; b < 4; ++b) bytes[b][v] = static_cast<uint8_t>(bit_cast<uint32_t>(value) >> (8 * b));
    }
  }
};

#ifdef __AVX512VBMI__

// One of the four tables in registers.
struct ByteTable {
  __m512i part[4];

  explicit ByteTable(const uint8_t* bytes) {
    for (int i = 0; i < 4; ++i) part[i] = _mm512_load_si512(bytes + 64 * i);
  }
  __m512i operator()(__m512i x, __mmask64 upper) const {
    return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(part[0], x, part[1]),
                                  _mm512_permutex2var_epi8(part[2], x, part[3]));
  }
};

__mmask64 first_bytes(int64_t n) { return n >= kBlock ? ~__mmask64(0) : (__mmask64(1) << n) - 1; }

// ψ of 64 pixels at a time, in lane order.
struct FloatTable {
  const ByteTable byte0, byte1, byte2, byte3;

  explicit FloatTable(const LookupTable& table)
      : byte0(table.bytes[0]), byte1(table.bytes[1]), byte2(table.bytes[2]), byte3(table.bytes[3]) {}

  // f(k, ψ of pixels 16 k … in lane order)
  template <class F>
  void operator()(__m512i pixels, const F& f) const {
    const __mmask64 upper = _mm512_movepi8_mask(pixels);
    const __m512i b0 = byte0(pixels, upper), b1 = byte1(pixels, upper);
    const __m512i b2 = byte2(pixels, upper), b3 = byte3(pixels, upper);
    const __m512i low01 = _mm512_unpacklo_epi8(b0, b1), high01 = _mm512_unpackhi_epi8(b0, b1);
    const __m512i low23 = _mm512_unpacklo_epi8(b2, b3), high23 = _mm512_unpackhi_epi8(b2, b3);
    f(0, _mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23)));
    f(1, _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23)));
    f(2, _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23)));
    f(3, _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23)));
  }
};

// acc[i] += Σ_{u < count} a[u] ψ(z[u, i]), acc in lane order, in whole blocks. The weights of a pass are registers.
template <int count, class Frames>
void add_frames_by_table(float* acc, const Frames& x, const float* a, const LookupTable& table, int64_t n) {
  const FloatTable values_of(table);
  for (int64_t i = 0; i < n; i += kBlock) {
    const __mmask64 mask = first_bytes(n - i);
    __m512 sum[4];
    for (int k = 0; k < 4; ++k) sum[k] = _mm512_loadu_ps(acc + i + 16 * k);
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) {
      const __m512 weight = _mm512_set1_ps(a[u]);
      values_of(_mm512_maskz_loadu_epi8(mask, x[u] + i),
                [&](int k, __m512 values) { sum[k] = _mm512_fmadd_ps(weight, values, sum[k]); });
    }
    for (int k = 0; k < 4; ++k) _mm512_storeu_ps(acc + i + 16 * k, sum[k]);
  }
}

// out[i] = ψ(z[i]), in lane order, in whole blocks.
inline void look_frame_up(float* out, const uint8_t* x, const LookupTable& table, int64_t n) {
  const FloatTable values_of(table);
  for (int64_t i = 0; i < n; i += kBlock)
    values_of(_mm512_maskz_loadu_epi8(first_bytes(n - i), x + i),
              [&](int k, __m512 values) { _mm512_storeu_ps(out + i + 16 * k, values); });
}

// acc[i] += Σ_{t < count} a[t] ψ(z[t, i]), acc in lane order.
template <class Frames>
void accumulate_by_table(float* acc, const Frames& x, const float* a, int64_t count, const LookupTable& table,
                         int64_t n) {
  int64_t t = 0;
  for (; t + 8 <= count; t += 8) add_frames_by_table<8>(acc, x.from(t), a + t, table, n);
  for (; t + 2 <= count; t += 2) add_frames_by_table<2>(acc, x.from(t), a + t, table, n);
  for (; t < count; ++t) add_frames_by_table<1>(acc, x.from(t), a + t, table, n);
}

// Pixel 16 j + 4 k + e of a block stands at 16 k + 4 j + e in lane order: a transposition of 4 × 4 quadruples.
void natural_order(float* acc, int64_t n) {
  for (int64_t i = 0; i < n; i += kBlock) {
    float block[kBlock];
    for (int j = 0; j < 4; ++j)
      for (int k = 0; k < 4; ++k) memcpy(block + 16 * j + 4 * k, acc + i + 16 * k + 4 * j, 4 * sizeof(float));
    memcpy(acc + i, block, sizeof(block));
  }
}

#endif

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
