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

// acc[i] += Σ_{u < count} a[u] ψ(z[u, i]), acc in lane order, in whole blocks. The weights of a pass are registers.
template <int count, class Frames>
void add_frames_by_table(float* acc, const Frames& x, const float* a, const LookupTable& table, int64_t n) {
  const ByteTable byte0(table.bytes[0]), byte1(table.bytes[1]), byte2(table.bytes[2]), byte3(table.bytes[3]);
  for (int64_t i = 0; i < n; i += kBlock) {
    const __mmask64 mask = first_bytes(n - i);
    __m512 sum[4];
    for (int k = 0; k < 4; ++k) sum[k] = _mm512_loadu_ps(acc + i + 16 * k);
#pragma GCC unroll 8
    for (int u = 0; u < count; ++u) {
      const __m512i pixels = _mm512_maskz_loadu_epi8(mask, x[u] + i);
      const __mmask64 upper = _mm512_movepi8_mask(pixels);
      const __m512i b0 = byte0(pixels, upper), b1 = byte1(pixels, upper);
      const __m512i b2 = byte2(pixels, upper), b3 = byte3(pixels, upper);
      const __m512i low01 = _mm512_unpacklo_epi8(b0, b1), high01 = _mm512_unpackhi_epi8(b0, b1);
      const __m512i low23 = _mm512_unpacklo_epi8(b2, b3), high23 = _mm512_unpackhi_epi8(b2, b3);
      const __m512 weight = _mm512_set1_ps(a[u]);
      sum[0] = _mm512_fmadd_ps(weight, _mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23)), sum[0]);
      sum[1] = _mm512_fmadd_ps(weight, _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23)), sum[1]);
      sum[2] = _mm512_fmadd_ps(weight, _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23)), sum[2]);
      sum[3] = _mm512_fmadd_ps(weight, _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23)), sum[3]);
    }
    for (int k = 0; k < 4; ++k) _mm512_storeu_ps(acc + i + 16 * k, sum[k]);
  }
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

// √ of bytes in 16 bits, for frames that a decoder has rounded anyway: two tables instead of four, 6 permutations for 64
// pixels instead of 16, within 2^-13 of the root. Like every ψ it is the same for like pixels, so that the weighted sum of
// what does not move still vanishes.
class RootTable {
 public:
  RootTable() {
    for (int v = 0; v < 256; ++v) {
      const auto root = static_cast<uint16_t>(std::sqrt(static_cast<float>(v)) * kScale + 0.5f);
      low_[v] = static_cast<uint8_t>(root);
      high_[v] = static_cast<uint8_t>(root >> 8);
    }
  }

  // acc[i] = Σ_{t < count} a[t] √x[t][i], in whole blocks
  void sum(float* acc, const uint8_t* const* x, const float* a, int64_t count, int64_t n) const {
    const ByteTable low(low_), high(high_);
    const __m512i lower_words = _mm512_set1_epi32(0xffff);
    for (int64_t i = 0; i < n; i += kBlock) {
      const __mmask64 mask = first_bytes(n - i);
      __m512 even[2] = {}, odd[2] = {};  // pixels of the lower and of the upper half of each 128-bit lane
      for (int64_t t = 0; t < count; ++t) {
        const __m512i pixels = _mm512_maskz_loadu_epi8(mask, x[t] + i);
        const __mmask64 upper = _mm512_movepi8_mask(pixels);
        const __m512i b0 = low(pixels, upper), b1 = high(pixels, upper);
        const __m512 weight = _mm512_set1_ps(a[t] / kScale);
        const auto add = [&](__m512i words, __m512& evens, __m512& odds) {
          evens = _mm512_fmadd_ps(weight, _mm512_cvtepi32_ps(_mm512_and_si512(words, lower_words)), evens);
          odds = _mm512_fmadd_ps(weight, _mm512_cvtepi32_ps(_mm512_srli_epi32(words, 16)), odds);
        };
        add(_mm512_unpacklo_epi8(b0, b1), even[0], odd[0]);
        add(_mm512_unpackhi_epi8(b0, b1), even[1], odd[1]);
      }
      // Pixels 16 j … of lane j: quadruples j of these four, one behind the other.
      const __m512 q0 = _mm512_unpacklo_ps(even[0], odd[0]), q1 = _mm512_unpackhi_ps(even[0], odd[0]);
      const __m512 q2 = _mm512_unpacklo_ps(even[1], odd[1]), q3 = _mm512_unpackhi_ps(even[1], odd[1]);
      const __m512 r0 = _mm512_shuffle_f32x4(q0, q1, 0x44), r1 = _mm512_shuffle_f32x4(q2, q3, 0x44);
      const __m512 r2 = _mm512_shuffle_f32x4(q0, q1, 0xee), r3 = _mm512_shuffle_f32x4(q2, q3, 0xee);
      _mm512_storeu_ps(acc + i, _mm512_shuffle_f32x4(r0, r1, 0x88));
      _mm512_storeu_ps(acc + i + 16, _mm512_shuffle_f32x4(r0, r1, 0xdd));
      _mm512_storeu_ps(acc + i + 32, _mm512_shuffle_f32x4(r2, r3, 0x88));
      _mm512_storeu_ps(acc + i + 48, _mm512_shuffle_f32x4(r2, r3, 0xdd));
    }
  }

 private:
  static constexpr float kScale = 4096;  // √255 fills 16 bits
  alignas(64) uint8_t low_[256], high_[256];
};

#endif

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
