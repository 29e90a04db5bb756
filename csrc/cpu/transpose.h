// Frames of a tile from where a tensor has them to rows side by side, and back.
#pragma once
#include <cstring>
#include <type_traits>
#include <utility>

#include "../pixel.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// Squares of 16 bytes a side, by vectors that every instruction set here has.
template <class X>
struct Square {
  static constexpr int kSide = 16 / static_cast<int>(sizeof(X));
  template <class Bits>
  struct VectorOf {
    typedef Bits type __attribute__((vector_size(16)));
  };
  using Bits = std::conditional_t<sizeof(X) == 1, uint8_t,
               std::conditional_t<sizeof(X) == 2, uint16_t, std::conditional_t<sizeof(X) == 4, uint32_t, uint64_t>>>;
  using Vector = typename VectorOf<Bits>::type;

  // Elements `from` … of a and of b by turns.
  template <int from, int... k>
  static inline __attribute__((always_inline)) Vector zip(Vector a, Vector b, std::integer_sequence<int, k...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, (from + k / 2 + k % 2 * kSide)...);
#else
    return __builtin_shuffle(a, b, Vector{static_cast<Bits>(from + k / 2 + k % 2 * kSide)...});
#endif
  }

  // out[c, r] = in[r, c] for r, c < kSide. Each round moves one bit of a row's number to the column's.
  static inline __attribute__((always_inline)) void transpose(X* out, int64_t out_pitch, const X* in, int64_t in_pitch) {
    constexpr std::make_integer_sequence<int, kSide> all;
    Vector rows[kSide], zipped[kSide];
    for (int r = 0; r < kSide; ++r) memcpy(&rows[r], in + r * in_pitch, sizeof(Vector));
    for (int bit = 1; bit < kSide; bit *= 2) {
      for (int r = 0; r < kSide / 2; ++r) {
        zipped[2 * r] = zip<0>(rows[r], rows[r + kSide / 2], all);
        zipped[2 * r + 1] = zip<kSide / 2>(rows[r], rows[r + kSide / 2], all);
      }
      for (int r = 0; r < kSide; ++r) rows[r] = zipped[r];
    }
    for (int r = 0; r < kSide; ++r) memcpy(out + r * out_pitch, &rows[r], sizeof(Vector));
  }
};

// out[c, r] = in[r, c], a few of the shorter side at a time.
template <class X>
__attribute__((noinline)) void transpose(X* out, int64_t out_pitch, const X* in, int64_t in_pitch, int64_t rows,
                                         int64_t columns) {
  constexpr int64_t kSide = Square<X>::kSide;
  const auto part = [=](int64_t r, int64_t c) {
    X* to = out + c * out_pitch + r;
    const X* from = in + r * in_pitch + c;
    if (r + kSide <= rows && c + kSide <= columns) return Square<X>::transpose(to, out_pitch, from, in_pitch);
    for (int64_t i = 0; i < kSide && c + i < columns; ++i)
      for (int64_t k = 0; k < kSide && r + k < rows; ++k) to[i * out_pitch + k] = from[k * in_pitch + i];
  };
  if (rows > columns) {
    for (int64_t r = 0; r < rows; r += kSide)
      for (int64_t c = 0; c < columns; c += kSide) part(r, c);
  } else {
    for (int64_t c = 0; c < columns; c += kSide)
      for (int64_t r = 0; r < rows; r += kSide) part(r, c);
  }
}

// out[u, i] = x[u, i] for u < frames and i < n: side by side, a pitch apart.
template <class X>
void pack(X* out, int64_t pitch, const X* x, int64_t frame_stride, int64_t element_stride, int64_t frames, int64_t n) {
  if (frame_stride == 1) return transpose(out, pitch, x, element_stride, n, frames);
  for (int64_t u = 0; u < frames; ++u)
    for (int64_t i = 0; i < n; ++i) out[u * pitch + i] = x[u * frame_stride + i * element_stride];
}

// x[u, i] = in[u, i]
template <class X>
void unpack(X* x, int64_t frame_stride, int64_t element_stride, const X* in, int64_t pitch, int64_t frames, int64_t n) {
  if (frame_stride == 1) return transpose(x, element_stride, in, pitch, frames, n);
  for (int64_t u = 0; u < frames; ++u)
    for (int64_t i = 0; i < n; ++i) x[u * frame_stride + i * element_stride] = in[u * pitch + i];
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
