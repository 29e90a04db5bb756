// Σ_t a[t] ψ(x[t][i]) of bytes in integers, for frames that a decoder has rounded anyway: products of bytes by AVX-512
// VNNI, four frames and 16 pixels an instruction, and √ by table with VBMI.
//
// Weights are numbers of 24 bits in three signed digits, to the largest of a sum; roots, of 16 bits, are two bytes. The
// products of one power of 256 share an accumulator; the least, 2^-32 of the largest, are left out. Behind the first quad
// of frames weights are rounded to two digits, and what one loses the one before it gets, at last the first. So they add up
// to what they should, to 24 bits, and, since a rounded root is the same for like pixels, the weighted sum of what does not
// move still vanishes; of what does, a frame's share is exact to 2^-16 of the share of the frame that weighs most.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "../planes.h"
#include "lookup.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define DYNPOOL_BYTE_SUMS 1

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int kDigits = 3, kQuad = 4;

// Weights of frames [first, end), whole quads, each quad's digits side by side. All others are 0.
class DigitWeights {
 public:
  DigitWeights(const float* a, int64_t count) {
    constexpr int kLargest = 126 * 0x10101;  // all digits 126, and room for what others have lost
    float most = 0;
    for (int64_t t = 0; t < count; ++t) most = std::fmax(most, std::fabs(a[t]));
    scale_ = most / kLargest;
    int64_t used = 0;  // the first frame with a weight
    while (used < count && a[used] == 0) ++used;
    while (used < count && a[count - 1] == 0) --count;
    first_ = used / kQuad * kQuad;
    end_ = (count + kQuad - 1) / kQuad * kQuad;
    int lost = 0;
    for (int64_t t = count - 1; t >= used; --t) {
      const int weight = static_cast<int>(std::lrint(a[t] / most * static_cast<double>(kLargest)));
      const bool rounded = t >= first_ + kQuad, takes = rounded || t == used;
      const int whole = weight + (takes ? lost : 0);
      const int kept = put(whole, rounded ? 1 : 0, t);
      if (takes) lost = whole - kept;
    }
  }
  int64_t first() const { return first_; }
  int64_t end() const { return end_; }
  float scale() const { return scale_; }  // of the least digit
  __m512i digit(int64_t t, int d) const {
    int32_t four;
    memcpy(&four, digits_[t / kQuad][d], sizeof(four));
    return _mm512_set1_epi32(four);
  }

 private:
  // The number rounded to digits from `least` on, and returned.
  int put(int number, int least, int64_t t) {
    const int unit = 1 << (8 * least);
    int rest = (number + unit / 2) >> (8 * least);
    const int kept = rest * unit;
    for (int d = least; d < kDigits; ++d) {
      digits_[t / kQuad][d][t % kQuad] = static_cast<int8_t>(rest);
      rest = (rest - static_cast<int8_t>(rest)) >> 8;
    }
    return kept;
  }

  int64_t first_ = 0, end_ = 0;
  float scale_ = 0;
  int8_t digits_[kMaxFrames / kQuad][kDigits][kQuad] = {};
};

// Sums of 64 pixels. Vector k has pixels 16 j + 4 k … of lane j, an accumulator a power of 256.
struct DigitSums {
  __m512i sum[kDigits][4] = {};

  void add(int power, int k, __m512i bytes, __m512i digits) {
    sum[power][k] = _mm512_dpbusd_epi32(sum[power][k], bytes, digits);
  }
  // out[i] += scale times what was summed, or, where out is fresh, out[i] = …, for i < n
  void add_to(float* out, bool fresh, float scale, int64_t n) const {
    __m512 q[4];
    for (int k = 0; k < 4; ++k) {
      const __m512 high = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum[2][k], 8), sum[1][k]));
      q[k] = _mm512_fmadd_ps(high, _mm512_set1_ps(256), _mm512_cvtepi32_ps(sum[0][k]));
    }
    const __m512 r0 = _mm512_shuffle_f32x4(q[0], q[1], 0x44), r1 = _mm512_shuffle_f32x4(q[2], q[3], 0x44);
    const __m512 r2 = _mm512_shuffle_f32x4(q[0], q[1], 0xee), r3 = _mm512_shuffle_f32x4(q[2], q[3], 0xee);
    const __m512 natural[] = {_mm512_shuffle_f32x4(r0, r1, 0x88), _mm512_shuffle_f32x4(r0, r1, 0xdd),
                              _mm512_shuffle_f32x4(r2, r3, 0x88), _mm512_shuffle_f32x4(r2, r3, 0xdd)};
    const __mmask64 mask = first_bytes(n);
    for (int k = 0; k < 4; ++k) {
      const __mmask16 part = static_cast<__mmask16>(mask >> (16 * k));
      const __m512 old = _mm512_maskz_loadu_ps(fresh ? 0 : part, out + 16 * k);
      _mm512_mask_storeu_ps(out + 16 * k, part, _mm512_fmadd_ps(natural[k], _mm512_set1_ps(scale), old));
    }
  }
};

// 64 pixels of four frames, a pixel's four bytes side by side.
struct Quad {
  __m512i bytes[4];

  // `ahead`: bytes from them to what is asked for, or 0.
  Quad(const uint8_t* const* x, int64_t i, __mmask64 mask, int64_t ahead) {
    const auto load = [&](int t) {
      if (ahead) __builtin_prefetch(x[t] + i + ahead);
      return _mm512_maskz_loadu_epi8(mask, x[t] + i);
    };
    const __m512i x0 = load(0), x1 = load(1), x2 = load(2), x3 = load(3);
    const __m512i low01 = _mm512_unpacklo_epi8(x0, x1), high01 = _mm512_unpackhi_epi8(x0, x1);
    const __m512i low23 = _mm512_unpacklo_epi8(x2, x3), high23 = _mm512_unpackhi_epi8(x2, x3);
    bytes[0] = _mm512_unpacklo_epi16(low01, low23);
    bytes[1] = _mm512_unpackhi_epi16(low01, low23);
    bytes[2] = _mm512_unpacklo_epi16(high01, high23);
    bytes[3] = _mm512_unpackhi_epi16(high01, high23);
  }
};

// √ of bytes as 16 bits, within 2^-13.
class RootTable {
 public:
  RootTable() {
    for (int v = 0; v < 256; ++v) {
      const auto root = static_cast<uint16_t>(std::sqrt(static_cast<float>(v)) * kScale + 0.5f);
      low_[v] = static_cast<uint8_t>(root);
      high_[v] = static_cast<uint8_t>(root >> 8);
    }
  }
  ByteTable low() const { return ByteTable(low_); }
  ByteTable high() const { return ByteTable(high_); }

  static constexpr float kScale = 4096;  // √255 fills 16 bits

 private:
  alignas(64) uint8_t low_[256], high_[256];
};

// ψ of 16 pixels of four frames: a byte, or, of a root, its two.
struct Digits {
  __m512i high, low;
};

template <Nonlinearity psi>
struct DigitsOf {
  static const RootTable& roots() {
    static const RootTable table;
    return table;
  }
  Digits operator()(__m512i bytes) const {
    if constexpr (psi == Nonlinearity::identity) return {bytes, bytes};
    const __mmask64 upper = _mm512_movepi8_mask(bytes);
    return {high(bytes, upper), low(bytes, upper)};
  }

  const ByteTable high{roots().high()}, low{roots().low()};
};

// Adds frames t … of vector k, times the digits of their weights from `least` on.
template <Nonlinearity psi>
inline void add_digits(DigitSums& sums, int k, const Digits& x, const DigitWeights& weights, int64_t t, int least) {
  for (int d = least; d < kDigits; ++d) sums.add(d, k, x.high, weights.digit(t, d));
  for (int d = 1; d < kDigits && psi == Nonlinearity::sqrt; ++d) sums.add(d - 1, k, x.low, weights.digit(t, d));
}

template <Nonlinearity psi>
float scale_of(const DigitWeights& weights) {
  return psi == Nonlinearity::sqrt ? weights.scale() * (256 / RootTable::kScale) : weights.scale();
}

// out[i] += Σ_t a[t] ψ(x[t][begin + i]) for i < n, or, where out is fresh, out[i] = …. There is an x of every frame of a
// quad.
template <Nonlinearity psi>
void sum_bytes(float* out, bool fresh, const uint8_t* const* x, int64_t begin, const DigitWeights& weights, int64_t n,
               int64_t ahead) {
  const DigitsOf<psi> digits_of;
  const float scale = scale_of<psi>(weights);
  for (int64_t i = 0; i < n; i += kBlock) {
    const __mmask64 mask = first_bytes(n - i);
    DigitSums sums;
    const auto add_quad = [&](int64_t t, int least) {
      const Quad quad(x + t, begin + i, mask, ahead);
      for (int k = 0; k < 4; ++k) add_digits<psi>(sums, k, digits_of(quad.bytes[k]), weights, t, least);
    };
    int64_t t = weights.first();
    if (t < weights.end()) add_quad(t, 0);
    for (t += kQuad; t < weights.end(); t += kQuad) add_quad(t, 1);
    sums.add_to(out + i, fresh, scale, n - i);
  }
}

// The same of many rows, for which pixels are looked up once. What is fresh is said of each row, or of none.
template <Nonlinearity psi>
void sum_bytes_of_rows(float* const* out, const int* fresh, const uint8_t* const* x, int64_t begin,
                       const std::vector<DigitWeights>& rows, int64_t n, int64_t ahead) {
  const DigitsOf<psi> digits_of;
  int64_t first = kMaxFrames, end = 0;
  for (const DigitWeights& weights : rows) {
    first = std::min(first, weights.first());
    end = std::max(end, weights.end());
  }
  for (int64_t i = 0; i < n; i += kBlock) {
    Digits digits[kMaxFrames / kQuad][4];
    for (int64_t t = first; t < end; t += kQuad) {
      const Quad quad(x + t, begin + i, first_bytes(n - i), ahead);
      for (int k = 0; k < 4; ++k) digits[t / kQuad][k] = digits_of(quad.bytes[k]);
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      const DigitWeights& weights = rows[r];
      DigitSums sums;
      const auto add_quad = [&](int64_t t, int least) {
        for (int k = 0; k < 4; ++k) add_digits<psi>(sums, k, digits[t / kQuad][k], weights, t, least);
      };
      int64_t t = weights.first();
      if (t < weights.end()) add_quad(t, 0);
      for (t += kQuad; t < weights.end(); t += kQuad) add_quad(t, 1);
      sums.add_to(out[r] + i, fresh && fresh[r], scale_of<psi>(weights), n - i);
    }
  }
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
#endif
