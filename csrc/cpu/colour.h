// Lines of Y, U, V to lines of R, G, B bytes, as csrc/planes.h defines them.
#pragma once
#include <type_traits>

#include "../colour.h"
#include "vectors.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// Samples of a line at a time, and lines of luma beside one of chroma: 16 frames as RGB fit the first-level cache.
constexpr int64_t kColourSpan = 320, kMostLines = 2;

// What the chroma samples of a line add to luma.
struct ChromaLine {
  int16_t r[kColourSpan], g[kColourSpan], b[kColourSpan];
};

template <class Sample, int step>
void fill_chroma(const Factors& f, const Sample* u, const Sample* v, int64_t n, ChromaLine& line) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Chroma added = chroma_of(f, u[i * step], v[i * step]);
    line.r[i] = added.r;
    line.g[i] = added.g;
    line.b[i] = added.b;
  }
}

// n luma samples to bytes R, G and B, `pitch` apart; a chroma sample serves 1 << shift of them.
template <class Sample, int shift>
void colour_line(const Factors& f, const Sample* Y, int64_t n, const ChromaLine& chroma, uint8_t* rgb, int64_t pitch) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const int16_t y = luma_of(f, Y[i]);
    rgb[i] = sum_as_byte(y, chroma.r[i >> shift]);
    rgb[i + pitch] = sum_as_byte(y, chroma.g[i >> shift]);
    rgb[i + 2 * pitch] = sum_as_byte(y, chroma.b[i >> shift]);
  }
}

#ifdef __AVX2__

// Vectors of 16 bits as unpacking leaves the bytes of one: the lower eight of every sixteen, and the upper eight. Packing
// puts them back in order.
struct Halves {
  Words low, high;
};

// The first n samples of a line, of which no more is read where they do not fill a vector of bytes.
template <bool whole>
struct Reader {
  const Factors& f;
  int64_t n;

  // 8 x - 8 zero at 8 bits: for bytes, sums of two products of bytes.
  Halves eights(const uint8_t* x, int zero) const {
    const Words bytes = load(x, n), zeros = word(pair_of_bytes(zero, zero)), factors = word(pair_of_bytes(8, -8));
    return {byte_products(low_bytes(bytes, zeros), factors), byte_products(high_bytes(bytes, zeros), factors)};
  }
  Halves eights(const uint16_t* x, int zero) const {
    constexpr int64_t kWords = sizeof(Words) / 2;
    const Words a = load(x, 2 * n), b = load(x + kWords, 2 * (n - kWords)), zeros = word(static_cast<uint16_t>(8 * zero));
    return {difference(shifted(even_lanes(a, b), f.up), zeros), difference(shifted(odd_lanes(a, b), f.up), zeros)};
  }
  // The same, in order, of the samples of chroma that serve two of n each.
  template <int step>
  Words halved_eights(const uint8_t* x) const {
    const Words factors = word(pair_of_bytes(8, -8)), middle = word(128 << 8);
    const Words bytes = step == 2 ? both(load(x, (n + 1) / 2 * 2 - 1), word(0xff))
                        : whole   ? words_of(x)
                                  : words_of(x, (n + 1) / 2);
    return byte_products(either(bytes, middle), factors);
  }
  template <int step>
  Words halved_eights(const uint16_t* x) const {
    return difference(shifted(load(x, (n + 1) / 2 * 2), f.up), word(8 * 128));
  }

 private:
  static Words load(const void* x, int64_t bytes) { return whole ? load_words(x) : load_words(x, bytes); }
  static uint16_t pair_of_bytes(int low, int high) { return static_cast<uint16_t>((low & 0xff) | (high & 0xff) << 8); }
};

// What chroma adds to luma: R, G, B.
struct Added {
  Words r, g, b;

  Added(const Factors& f, Words U, Words V)
      : r(high_half(V, word(f.rv))), g(sum(high_half(U, word(f.gu)), high_half(V, word(f.gv)))),
        b(high_half(U, word(f.bu))) {}
};

// A vector of bytes of `lines` lines.
template <class Sample, int step, int shift, int lines, bool whole>
inline __attribute__((always_inline)) void colour_vector(const Factors& f, const Sample* const* Y, const Sample* u,
                                                         const Sample* v, int64_t i, int64_t n, uint8_t* rgb,
                                                         int64_t pitch) {
  const Reader<whole> reader{f, n - i};
  const int64_t chroma = (i >> shift) * step;
  Halves added[3];
  if constexpr (shift == 1) {
    const Added a(f, reader.template halved_eights<step>(u + chroma), reader.template halved_eights<step>(v + chroma));
    added[0] = {twice_low(a.r), twice_high(a.r)};
    added[1] = {twice_low(a.g), twice_high(a.g)};
    added[2] = {twice_low(a.b), twice_high(a.b)};
  } else {
    const Halves U = reader.eights(u + chroma, 128), V = reader.eights(v + chroma, 128);
    const Added low(f, U.low, V.low), high(f, U.high, V.high);
    added[0] = {low.r, high.r};
    added[1] = {low.g, high.g};
    added[2] = {low.b, high.b};
  }
  const Words factor = word(f.y);
#pragma GCC unroll 2
  for (int y = 0; y < lines; ++y) {
    const Halves luma = reader.eights(Y[y] + i, f.black >> 3);
    const Words low = high_half(luma.low, factor), high = high_half(luma.high, factor);
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c)
      store_words(rgb + (3 * y + c) * pitch + i, clipped(sum(low, added[c].low), sum(high, added[c].high)));
  }
}

template <class Sample, int step, int shift, int lines>
void colour_vectors(const Factors& f, const Sample* const* Y, const Sample* u, const Sample* v, int64_t n, uint8_t* rgb,
                    int64_t pitch) {
  constexpr int64_t kBytes = sizeof(Words);
  const int64_t readable = step == 1 ? n : n - 1;  // after the last of V there is no U
  int64_t i = 0;
  for (; i + kBytes <= readable; i += kBytes) colour_vector<Sample, step, shift, lines, true>(f, Y, u, v, i, n, rgb, pitch);
  for (; i < n; i += kBytes) colour_vector<Sample, step, shift, lines, false>(f, Y, u, v, i, n, rgb, pitch);
}

#endif

// n samples of `lines` lines Y beside one of U and V, as bytes R, G, B of the first, R, G, B of the second, `pitch` apart:
// whole vectors, of which bytes from n on are anything.
template <class Sample, int step, int shift>
void colour_lines(const Factors& f, const Sample* const* Y, int64_t lines, const Sample* u, const Sample* v, int64_t n,
                  uint8_t* rgb, int64_t pitch) {
#ifdef __AVX2__
  constexpr bool common = step == 1 || (shift == 1 && std::is_same<Sample, uint8_t>::value);
  if constexpr (common) {
    const auto convert = lines == 1 ? colour_vectors<Sample, step, shift, 1> : colour_vectors<Sample, step, shift, 2>;
    return convert(f, Y, u, v, n, rgb, pitch);
  }
#endif
  ChromaLine chroma;
  fill_chroma<Sample, step>(f, u, v, (n + shift) >> shift, chroma);
  for (int64_t y = 0; y < lines; ++y) colour_line<Sample, shift>(f, Y[y], n, chroma, rgb + 3 * y * pitch, pitch);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
