// Rows of vectors as columns, and frames of a tile from where a tensor has them to rows side by side, and back.
#pragma once
#include <cstring>
#include <type_traits>
#include <utility>

#include "../pixel.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DYNPOOL_SHUFFLE
#endif
#endif

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// Elements begin, begin + 1, … of a and of b in turn.
template <int64_t begin, class Vector, size_t... i>
inline __attribute__((always_inline)) Vector interleave(Vector a, Vector b, std::index_sequence<i...>) {
  constexpr int64_t V = sizeof...(i);
#ifdef DYNPOOL_SHUFFLE
  return __builtin_shufflevector(a, b, (begin + i / 2 + i % 2 * V)...);
#else
  Vector result;
  ((result[i] = i % 2 ? b[begin + i / 2] : a[begin + i / 2]), ...);
  return result;
#endif
}

// As many rows as a vector has elements. Each round moves one bit of a row's number to the column's.
template <class Vector>
inline __attribute__((always_inline)) void transpose_rows(Vector* rows) {
  constexpr int64_t V = sizeof(Vector) / sizeof(rows[0][0]);
  constexpr auto lanes = std::make_index_sequence<V>();
  for (int64_t stage = 1; stage < V; stage *= 2) {
    Vector shuffled[V];
    for (int64_t i = 0; i < V / 2; ++i) {
      shuffled[2 * i] = interleave<0>(rows[i], rows[i + V / 2], lanes);
      shuffled[2 * i + 1] = interleave<V / 2>(rows[i], rows[i + V / 2], lanes);
    }
    for (int64_t i = 0; i < V; ++i) rows[i] = shuffled[i];
  }
}

// Elements by their bits, in vectors of 16 bytes, which every instruction set here has.
template <class X>
struct BitsOf {
  using Bits = std::conditional_t<sizeof(X) == 1, uint8_t,
               std::conditional_t<sizeof(X) == 2, uint16_t, std::conditional_t<sizeof(X) == 4, uint32_t, uint64_t>>>;
  typedef Bits Vector __attribute__((vector_size(16)));
};

// out[c, r] = in[r, c]; all of the shorter side at a time.
template <class X>
__attribute__((noinline)) void transpose(X* out, int64_t out_pitch, const X* in, int64_t in_pitch, int64_t rows,
                                         int64_t columns) {
  using Vector = typename BitsOf<X>::Vector;
  constexpr int64_t kSide = sizeof(Vector) / sizeof(X);
  const auto part = [=](int64_t r, int64_t c) {
    X* to = out + c * out_pitch + r;
    const X* from = in + r * in_pitch + c;
    if (r + kSide <= rows && c + kSide <= columns) {
      Vector square[kSide];
      for (int64_t k = 0; k < kSide; ++k) memcpy(&square[k], from + k * in_pitch, sizeof(Vector));
      transpose_rows(square);
      for (int64_t i = 0; i < kSide; ++i) memcpy(to + i * out_pitch, &square[i], sizeof(Vector));
      return;
    }
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

// f(u, i) for u < frames and i < n, in the order in which memory has them.
template <class F>
inline __attribute__((always_inline)) void each_element(int64_t frame_stride, int64_t element_stride, int64_t frames,
                                                        int64_t n, F f) {
  if (frame_stride < element_stride) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t u = 0; u < frames; ++u) f(u, i);
  } else {
    for (int64_t u = 0; u < frames; ++u)
      for (int64_t i = 0; i < n; ++i) f(u, i);
  }
}

// out[u, i] = x[u, i] for u < frames and i < n: side by side, a pitch apart.
template <class X>
void pack(X* out, int64_t pitch, const X* x, int64_t frame_stride, int64_t element_stride, int64_t frames, int64_t n) {
  if (frame_stride == 1) return transpose(out, pitch, x, element_stride, n, frames);
  each_element(frame_stride, element_stride, frames, n,
               [=](int64_t u, int64_t i) { out[u * pitch + i] = x[u * frame_stride + i * element_stride]; });
}

// x[u, i] = in[u, i]
template <class X>
void unpack(X* x, int64_t frame_stride, int64_t element_stride, const X* in, int64_t pitch, int64_t frames, int64_t n) {
  if (frame_stride == 1) return transpose(x, element_stride, in, pitch, frames, n);
  each_element(frame_stride, element_stride, frames, n,
               [=](int64_t u, int64_t i) { x[u * frame_stride + i * element_stride] = in[u * pitch + i]; });
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
