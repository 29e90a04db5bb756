// What one thread reads and writes of a frame: V elements of an inner row. Pixels side by side come as 16 bytes, out of
// the aligned words that hold them, wherever they begin; others one by one, at any stride.
#pragma once
#include "launchers.h"

namespace dynpool::cuda {

// --- who owns what ---------------------------------------------------------------------------------------------------

// How pixels come: `aligned`, whole words that all of a launch's tensors are cut into; `shifted`, 16 bytes wherever they
// begin, for pixels side by side; `spread`, such pixels one by one, of which a warp reads those of a line together; `single`,
// at any stride.
enum class Access { aligned, shifted, spread, single };

template <class X, Access access>
constexpr int patch_size = access == Access::single ? 4 : static_cast<int>(16 / sizeof(X));  // V

// float64 is rare and its single elements are half a word: one path serves.
template <class X>
constexpr bool has_word_path = sizeof(X) < 8;

// A thread's columns of one inner row, `step` apart: of V, those in [begin, end); the others lie outside of the row.
template <Access access>
struct Place {
  int64_t outer, first, step;  // step is 1 but for single elements
  int begin, end;
  Row row;

  __device__ __forceinline__ bool empty() const { return begin >= end; }
  __device__ __forceinline__ int64_t column(int j) const {
    return access == Access::single ? first + j * step : first + j;
  }
  __device__ __forceinline__ bool owns(int j) const {
    return access == Access::aligned || ((access == Access::single || begin <= j) && j < end);
  }
  template <int V>
  __device__ __forceinline__ bool whole() const {
    return access == Access::aligned || end - begin == V;
  }
};

// Piece number `piece` of the `pieces` of an inner row. Single elements lie `pieces` apart, so that a warp reads side by
// side; shifted words may begin `skew` columns earlier.
template <Access access, int V, bool skewed = false>
__device__ __forceinline__ Place<access> place_of(const TemporalPoolParams& p, const Row& row, int64_t outer,
                                                  int64_t piece, int64_t pieces, int skew = 0) {
  const int64_t size = p.inner().size;
  constexpr bool single = access == Access::single;
  Place<access> place{outer, single ? piece : piece * V - skew, single ? pieces : 1, 0, V, row};
  if constexpr (single) {
#pragma unroll
    for (int j = V - 1; j >= 0; --j)
      if (place.column(j) >= size) place.end = j;
  } else if constexpr (access == Access::shifted) {
    if (skewed && place.first < 0) place.begin = static_cast<int>(-place.first);
    if (place.first + V > size) place.end = static_cast<int>(size - place.first);
  }
  return place;
}

// Threads over the pieces of all inner rows; a tile is what one block covers.
struct Tiling {
  int64_t outer, pieces, tiles;  // inner rows, pieces of one
};

inline Tiling make_tiling(const TemporalPoolParams& p, int patch, int skew = 0) {
  const int64_t outer = p.num_outer(), pieces = ceil_div(p.inner().size + skew, patch);
  return {outer, pieces, ceil_div(outer * pieces, kThreads)};
}

// Row and piece of thread n of those that share no piece; false where none is left.
__device__ __forceinline__ bool find_piece(const Tiling& tiling, int64_t n, int64_t& outer, int64_t& piece) {
  outer = n / tiling.pieces;
  piece = n - outer * tiling.pieces;
  return outer < tiling.outer;
}
__device__ __forceinline__ bool find_piece(const Tiling& tiling, int64_t& outer, int64_t& piece) {
  return find_piece(tiling, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, outer, piece);
}

// Calls use(j, channel) for each of a thread's elements.
template <int V, Access access, class Use>
__device__ __forceinline__ void for_each_channel(const TemporalPoolParams& p, const Place<access>& place, Use use) {
  int64_t channel = channel_of(p, place.row, place.column(place.begin));
#pragma unroll
  for (int j = 0; j < V; ++j) {
    use(j, channel);  // outside of the row: of an element inside
    if (j + 1 == V || !place.owns(j) || !place.owns(j + 1)) continue;
    if (access == Access::single) {
      channel = channel_of(p, place.row, place.column(j + 1));
    } else if (p.channel_period) {
      channel = channel + 1 == p.channel_period ? 0 : channel + 1;
    } else {
      channel += p.inner().channel;
    }
  }
}

// --- frames ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t bits_of(uint8_t x) { return x; }
__device__ __forceinline__ uint32_t bits_of(Half x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(BFloat16 x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(float x) { return bit_cast<uint32_t>(x); }

// Addresses that may be read: from the first element of a tensor to the end of its last.
struct Extent {
  uint64_t begin, end;
};

__device__ __forceinline__ uint64_t word_of(uint64_t address) { return address & ~uint64_t{15}; }
// Whether the two words in which 16 bytes begin and end may be read.
__device__ __forceinline__ bool fits(uint64_t address, const Extent& extent) {
  return word_of(address) >= extent.begin && word_of(address) + 32 <= extent.end;
}

// Whether they may be read in every frame, for columns from `first` on of rows that begin at `row` in frame 0.
template <class X>
__device__ __forceinline__ bool all_fit(const TemporalPoolParams& p, const X* row, int64_t first, const Extent& extent) {
  const uint64_t begin = reinterpret_cast<uint64_t>(row + first);
  return fits(begin, extent) && fits(begin + (p.T - 1) * p.x_t * sizeof(X), extent);
}

// A word, read by one instruction.
__device__ __forceinline__ void read_word(const void* from, uint32_t (&word)[4]) {
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
}
__device__ __forceinline__ void read_word(const void* from, uint32_t (&word)[2]) {
  const uint2 v = __ldg(static_cast<const uint2*>(from));
  word[0] = v.x, word[1] = v.y;
}
__device__ __forceinline__ void read_word(const void* from, uint32_t (&word)[1]) {
  word[0] = __ldg(static_cast<const uint32_t*>(from));
}

// The byte as the last digits of 2²³, without the conversion unit, which the roots need.
__device__ __forceinline__ float byte_of(uint32_t word, int j) {
  return bit_cast<float>(__byte_perm(word, 0x4b000000u, 0x7540u | j)) - 8388608.0f;
}

template <class X, Access access, int bytes = 16>
struct Patch;

// A word of so many bytes.
template <class X, int bytes>
struct Patch<X, Access::aligned, bytes> {
  static constexpr int V = bytes / static_cast<int>(sizeof(X));
  uint32_t word[bytes / 4];

  __device__ __forceinline__ void load(const X* first) { read_word(first, word); }
  __device__ __forceinline__ void stream(const X* first) { stream_word(first, word); }  // what nobody reads again
  __device__ __forceinline__ void load(const TemporalPoolParams&, const X* row, const Place<Access::aligned>& place) {
    load(row + place.first);
  }
  __device__ __forceinline__ void align() {}
  __device__ __forceinline__ typename Accumulate<X>::type operator[](int j) const {
    if constexpr (sizeof(X) == 1) {
      return byte_of(word[j / 4], j % 4);
    } else if constexpr (sizeof(X) == 2) {
      return dynpool::load(X{static_cast<uint16_t>(word[j / 2] >> 16 * (j % 2))});
    } else {
      return bit_cast<float>(word[j]);
    }
  }
};

// 16 bytes at any address, out of the aligned word that they begin in and the next. The neighbour's thread reads that one
// as its first, so that it comes from the cache. What lies outside of the row is whatever memory has there.
template <class X>
struct Patch<X, Access::shifted, 16> : Patch<X, Access::aligned> {
  using Patch<X, Access::aligned>::word;
  using Patch<X, Access::aligned>::V;
  uint32_t next[4];
  uint32_t shift;  // bytes of `word` before the first pixel

  static __device__ __forceinline__ const uint4* words_at(const X* first) {
    return reinterpret_cast<const uint4*>(word_of(reinterpret_cast<uint64_t>(first)));
  }
  __device__ __forceinline__ void load(const X* first) {
    const uint4* words = words_at(first);
    read_word(words, word);
    read_word(words + 1, next);
    shift = static_cast<uint32_t>(reinterpret_cast<uint64_t>(first)) & 15;
  }
  __device__ __forceinline__ void load(const TemporalPoolParams&, const X* row, const Place<Access::shifted>& place) {
    load(row + place.first);
  }

  // The same by way of shared memory, where the words wait for the thread, kThreads apart; `address` is the end of that
  // of the first pixel.
  static __device__ __forceinline__ void fetch(uint4* to, const X* first) {
    const uint4* words = words_at(first);
    copy_async(to, words);
    copy_async(to + kThreads, words + 1);
  }
  __device__ __forceinline__ void take(const uint4* from, uint32_t address) {
    const uint4 first = from[0], second = from[kThreads];
    word[0] = first.x, word[1] = first.y, word[2] = first.z, word[3] = first.w;
    next[0] = second.x, next[1] = second.y, next[2] = second.z, next[3] = second.w;
    shift = address & 15;
  }

  // At the ends of the tensor.
  __device__ __forceinline__ void load_singly(const X* row, const Place<Access::shifted>& place) {
    load_each([&](int j) { return place.owns(j) ? bits_of(row[place.column(j)]) : 0; });
  }
  // The last pixel first, each moving the others up.
  template <class BitsOf>
  __device__ __forceinline__ void load_each(const BitsOf& bits_of_pixel) {
#pragma unroll
    for (int k = 0; k < 4; ++k) word[k] = next[k] = 0;
    shift = 0;
#pragma unroll 1
    for (int j = V - 1; j >= 0; --j) {
      const uint32_t pixel = bits_of_pixel(j);
#pragma unroll
      for (int k = 3; k >= 0; --k) {
        const uint32_t below = k > 0 ? word[k - 1] : 0;
        word[k] = sizeof(X) == 4 ? below : __funnelshift_l(below, word[k], 8 * sizeof(X));
      }
      word[0] |= pixel;
    }
  }

  // Moves the pixels to the front, before they are used.
  __device__ __forceinline__ void align() {
    uint32_t w[8] = {word[0], word[1], word[2], word[3], next[0], next[1], next[2], next[3]};
#pragma unroll
    for (int k = 0; k < 6; ++k) w[k] = shift & 8 ? w[k + 2] : w[k];
#pragma unroll
    for (int k = 0; k < 5; ++k) w[k] = shift & 4 ? w[k + 1] : w[k];
#pragma unroll
    for (int k = 0; k < 4; ++k) word[k] = sizeof(X) == 4 ? w[k] : __funnelshift_r(w[k], w[k + 1], 8 * shift);
  }

  // Makes pixels past the end of the row zero.
  __device__ __forceinline__ void clear_outside(const Place<Access::shifted>& place) {
#pragma unroll
    for (int k = 0; k < 4; ++k) word[k] &= first_pixels(place.end, k);
  }
  // Takes the pixels from number `count` on from another.
  __device__ __forceinline__ void end_as(const Patch& other, int count) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t own = first_pixels(count, k);
      word[k] = (word[k] & own) | (other.word[k] & ~own);
    }
  }

 private:
  // The bits of word k that are of so many pixels.
  static __device__ __forceinline__ uint32_t first_pixels(int count, int k) {
    const int bytes = count * static_cast<int>(sizeof(X)) - 4 * k;
    return bytes >= 4 ? ~0u : bytes <= 0 ? 0u : (1u << 8 * bytes) - 1;
  }
};

// Pixels 32 apart, of a row of which `left` are left from the first on: a warp reads whole lines, wherever they begin.
// Those past the end are zero.
template <>
struct Patch<float, Access::spread> {
  static constexpr int V = patch_size<float, Access::spread>;
  float element[V];

  __device__ __forceinline__ void load(const float* first, int left) {
    if (left > 32 * (V - 1)) {
#pragma unroll
      for (int j = 0; j < V; ++j) element[j] = __ldg(first + 32 * j);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) element[j] = 32 * j < left ? __ldg(first + 32 * j) : 0.0f;
    }
  }
  __device__ __forceinline__ void align() {}
  __device__ __forceinline__ float operator[](int j) const { return element[j]; }
};

// Any stride; elements past the row's end are zero.
template <class X>
struct Patch<X, Access::single, 16> {
  static constexpr int V = patch_size<X, Access::single>;
  X element[V] = {};

  __device__ __forceinline__ void load(const TemporalPoolParams& p, const X* row, const Place<Access::single>& place) {
#pragma unroll
    for (int j = 0; j < V; ++j) element[j] = place.owns(j) ? row[place.column(j) * p.inner().x] : X{};
  }
  __device__ __forceinline__ void align() {}
  __device__ __forceinline__ void clear_outside(const Place<Access::single>&) {}
  __device__ __forceinline__ typename Accumulate<X>::type operator[](int j) const { return dynpool::load(element[j]); }
};

// Loads a patch, single pixels where its words may not be read.
template <class X, Access access>
__device__ __forceinline__ void load_within(Patch<X, access>& patch, const TemporalPoolParams& p, const X* row,
                                            const Place<access>& place, const Extent& extent) {
  if constexpr (access == Access::shifted)
    if (!fits(reinterpret_cast<uint64_t>(row + place.first), extent)) return patch.load_singly(row, place);
  patch.load(p, row, place);
}

// --- pooled rows and gradients ---------------------------------------------------------------------------------------

// Up to 16 bytes of consecutive elements.
template <class Y, int N>
struct alignas(sizeof(Y) * N) Pack {
  Y element[N];
};

template <class Y, int V>
constexpr int pack_size = V * sizeof(Y) < 16 ? V : static_cast<int>(16 / sizeof(Y));

// Elements between the last place of a pack and an address.
template <class Y, int V>
__device__ __forceinline__ int past_pack(const Y* y) {
  return static_cast<int>(reinterpret_cast<uint64_t>(y) / sizeof(Y) % pack_size<Y, V>);
}

template <class Y, int N, class Acc>
__device__ __forceinline__ Pack<Y, N> pack_of(const Acc* value) {
  Pack<Y, N> pack;
  if constexpr (sizeof(Y) == 2 && N % 2 == 0 && sizeof(Acc) == 4) {
    Pack<uint32_t, N / 2> pairs;
#pragma unroll
    for (int n = 0; n < N / 2; ++n) pairs.element[n] = store_pair<Y>(value[2 * n], value[2 * n + 1]);
    pack = bit_cast<Pack<Y, N>>(pairs);
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) pack.element[n] = store<Y>(value[n]);
  }
  return pack;
}

// Packs, after `head` single elements and before the rest.
template <int head, class Y, int V, class Acc>
__device__ __forceinline__ void store_packs(Y* y, const Acc (&value)[V]) {
  constexpr int N = pack_size<Y, V>, tail = head + (V - head) / N * N;
#pragma unroll
  for (int j = 0; j < head; ++j) y[j] = store<Y>(value[j]);
#pragma unroll
  for (int j = head; j < tail; j += N) *reinterpret_cast<Pack<Y, N>*>(y + j) = pack_of<Y, N>(value + j);
#pragma unroll
  for (int j = tail; j < V; ++j) y[j] = store<Y>(value[j]);
}

template <class Y, int V, Access access, class Acc>
__device__ __forceinline__ void store_as(void* y, int64_t offset, int64_t stride, const Place<access>& place,
                                         const Acc (&value)[V]) {
  Y* to = static_cast<Y*>(y) + offset + place.first * stride;
  if constexpr (access == Access::aligned) {
    store_packs<0>(to, value);
  } else {
    if (access == Access::shifted && stride == 1 && place.template whole<V>()) {
      const int past = past_pack<Y, V>(to);
      if (past == 0) return store_packs<0>(to, value);
      if constexpr (pack_size<Y, V> == 4 && V > 4) {
        if (past == 1) return store_packs<3>(to, value);
        if (past == 2) return store_packs<2>(to, value);
        return store_packs<1>(to, value);
      }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (place.owns(j)) *to = store<Y>(value[j]);
      to += place.step * stride;
    }
  }
}

// A word at its own address, by one instruction whatever the compiler thinks, which may cost it registers: for what a
// kernel writes most of. Single elements where the row has only a part of it.
template <bool streams, class Y, int V, class Acc>
__device__ __forceinline__ void store_whole(Y* to, const Place<Access::shifted>& place, const Acc (&value)[V]) {
  static_assert(sizeof(Pack<Y, V>) == 16, "a word");
  if (place.template whole<V>())
    return store_word<streams>(reinterpret_cast<uint4*>(to), bit_cast<uint4>(pack_of<Y, V>(value)));
#pragma unroll
  for (int j = 0; j < V; ++j)
    if (place.owns(j)) to[j] = store<Y>(value[j]);
}

template <int V, Access access, class Acc>
__device__ __forceinline__ void store_row(void* y, DType dtype, int64_t offset, int64_t stride,
                                          const Place<access>& place, const Acc (&value)[V]) {
  switch (dtype) {
    case DType::float16: return store_as<Half>(y, offset, stride, place, value);
    case DType::bfloat16: return store_as<BFloat16>(y, offset, stride, place, value);
    case DType::float32: return store_as<float>(y, offset, stride, place, value);
    default: return store_as<double>(y, offset, stride, place, value);
  }
}

template <class Y, int V, class Acc>
__device__ __forceinline__ void load_packs(const Y* y, Acc (&value)[V]) {
  constexpr int N = pack_size<Y, V>;
#pragma unroll
  for (int j = 0; j < V; j += N) {
    const Pack<Y, N> pack = *reinterpret_cast<const Pack<Y, N>*>(y + j);
#pragma unroll
    for (int n = 0; n < N; ++n) value[j + n] = static_cast<Acc>(load(pack.element[n]));
  }
}

// Elements outside of the row are zero.
template <class Y, int V, Access access, class Acc>
__device__ __forceinline__ void load_as(const void* y, int64_t offset, int64_t stride,
                                        const Place<access>& place, Acc (&value)[V]) {
  const Y* from = static_cast<const Y*>(y) + offset + place.first * stride;
  if constexpr (access == Access::aligned) {
    load_packs(from, value);
  } else {
    if (access == Access::shifted && stride == 1 && place.template whole<V>() && past_pack<Y, V>(from) == 0)
      return load_packs(from, value);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] = place.owns(j) ? static_cast<Acc>(load(*from)) : Acc(0);
      from += place.step * stride;
    }
  }
}

template <int V, Access access, class Acc>
__device__ __forceinline__ void load_row(const void* y, DType dtype, int64_t offset, int64_t stride,
                                         const Place<access>& place, Acc (&value)[V]) {
  switch (dtype) {
    case DType::float16: return load_as<Half>(y, offset, stride, place, value);
    case DType::bfloat16: return load_as<BFloat16>(y, offset, stride, place, value);
    case DType::float32: return load_as<float>(y, offset, stride, place, value);
    default: return load_as<double>(y, offset, stride, place, value);
  }
}

// --- layouts, on the host --------------------------------------------------------------------------------------------

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::uint8: return 1;
    case DType::float16:
    case DType::bfloat16: return 2;
    case DType::float32: return 4;
    default: return 8;
  }
}

// `stride` is the member of Axis for this tensor, `step` its stride of frames (or rows), of which there are `steps`.
inline Extent extent_of(const TemporalPoolParams& p, const void* tensor, DType dtype, int64_t Axis::*stride,
                        int64_t step, int64_t steps) {
  const uint64_t begin = reinterpret_cast<uint64_t>(tensor);
  const int64_t size = size_of(dtype);
  if (!tensor || steps == 0) return {begin, begin};
  Extent extent{begin, begin + size};
  const auto widen = [&](int64_t count, int64_t stride) {
    (stride < 0 ? extent.begin : extent.end) += (count - 1) * stride * size;
  };
  widen(steps, step);
  for (int a = 0; a < p.num_axes; ++a) widen(p.axes[a].size, p.axes[a].*stride);
  return extent;
}

inline Extent extent_of(const TemporalPoolParams& p) {
  return extent_of(p, p.x, p.x_dtype, &Axis::x, p.x_t, p.T);
}

// Whether every inner row of a tensor begins on a multiple of `bytes` and walks memory element by element.
inline bool aligned(const TemporalPoolParams& p, const void* tensor, DType dtype, int64_t Axis::*stride, int64_t step,
                    int64_t steps, int64_t bytes) {
  const int64_t size = size_of(dtype);
  bool good = reinterpret_cast<uintptr_t>(tensor) % bytes == 0 && p.inner().*stride == 1;
  if (steps > 1) good = good && step * size % bytes == 0;
  for (int a = 0; a + 1 < p.num_axes; ++a)
    if (p.axes[a].size > 1) good = good && p.axes[a].*stride * size % bytes == 0;
  return good;
}

// Whether all that a kernel touches comes in whole patches: x in words of so many bytes, the rest in packs of at most 16.
inline bool in_words(const TemporalPoolParams& p, const void* y, int64_t bytes = 16) {
  const int64_t patch = bytes / size_of(p.x_dtype), pack = std::min<int64_t>(16, patch * size_of(p.y_dtype));
  return p.inner().size % patch == 0 &&                                         //
         (!p.x || aligned(p, p.x, p.x_dtype, &Axis::x, p.x_t, p.T, bytes)) &&  //
         (!p.dx || aligned(p, p.dx, p.x_dtype, &Axis::dx, p.dx_t, p.T, bytes)) &&
         aligned(p, y, p.y_dtype, &Axis::y, p.y_w, p.W, pack);
}

}  // namespace dynpool::cuda
