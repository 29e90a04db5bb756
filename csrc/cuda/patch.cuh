// What one thread reads and writes of a frame: V elements of an inner row, in 16-byte words where they are consecutive
// and aligned, else one by one at any stride.
#pragma once
#include "launchers.h"

namespace dynpool::cuda {

// --- who owns what ---------------------------------------------------------------------------------------------------

template <class X, bool vector>
constexpr int patch_size = vector ? static_cast<int>(16 / sizeof(X)) : 4;  // V

// float64 is rare and its single elements are half a word: one path serves.
template <class X>
constexpr bool has_word_path = sizeof(X) < 8;

// A thread's V columns of one inner row: consecutive ones, or any step apart.
template <bool vector>
struct Place {
  int64_t outer, first, end;
  int64_t step;  // 1 where vector
  Row row;

  __device__ __forceinline__ bool empty() const { return first >= end; }
  __device__ __forceinline__ int64_t column(int j) const { return vector ? first + j : first + j * step; }
  __device__ __forceinline__ bool owns(int j) const { return vector || column(j) < end; }
};

// Blocks of [rows, lanes] threads over all inner rows; a tile is what one block covers.
struct Tiling {
  int64_t outer, tiles_per_row, tiles;
  dim3 block;
};

inline Tiling make_tiling(const TemporalPoolParams& p, int patch) {
  const int64_t patches = ceil_div(p.inner().size, patch);
  unsigned lanes = 1;
  while (lanes < patches && lanes < kThreads) lanes *= 2;
  Tiling tiling;
  tiling.block = dim3(lanes, kThreads / lanes);
  tiling.outer = p.num_outer();
  tiling.tiles_per_row = ceil_div(patches, lanes);
  tiling.tiles = ceil_div(tiling.outer, tiling.block.y) * tiling.tiles_per_row;
  return tiling;
}

// Columns of one thread: lanes apart where they are single elements, so that a warp reads side by side.
template <bool vector, int V>
__device__ __forceinline__ Place<vector> place_of_thread(const TemporalPoolParams& p, const Tiling& tiling) {
  const int64_t block_row = blockIdx.x / tiling.tiles_per_row, tile = blockIdx.x - block_row * tiling.tiles_per_row;
  Place<vector> place;
  place.outer = block_row * blockDim.y + threadIdx.y;
  place.first = tile * blockDim.x * V + threadIdx.x * (vector ? V : 1);
  place.end = place.outer < tiling.outer ? p.inner().size : 0;
  place.step = vector ? 1 : blockDim.x;
  place.row = locate_row(p, place.outer);
  return place;
}

// Calls use(j, channel) for each of a thread's elements.
template <int V, bool vector, class Use>
__device__ __forceinline__ void for_each_channel(const TemporalPoolParams& p, const Place<vector>& place, Use use) {
  int64_t channel = channel_of(p, place.row, place.first);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (!vector && j > 0 && place.owns(j)) channel = channel_of(p, place.row, place.column(j));
    use(j, channel);
    if (vector && p.channel_period) channel = channel + 1 == p.channel_period ? 0 : channel + 1;
    if (vector && !p.channel_period && j + 1 < V) channel += p.inner().channel;
  }
}

// --- frames ----------------------------------------------------------------------------------------------------------

template <class X, bool vector>
struct Patch;

// One 16-byte load.
template <class X>
struct Patch<X, true> {
  static constexpr int V = patch_size<X, true>;
  uint32_t word[4];

  __device__ __forceinline__ void load(const X* row, const Place<true>& place, int64_t) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(row + place.first));
    word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
  }
  __device__ __forceinline__ typename Accumulate<X>::type operator[](int j) const {
    if constexpr (sizeof(X) == 1) {
      // The byte as the last digits of 2²³, without the conversion unit, which the roots need.
      return bit_cast<float>(__byte_perm(word[j / 4], 0x4b000000u, 0x7540u | (j % 4))) - 8388608.0f;
    } else if constexpr (sizeof(X) == 2) {
      return dynpool::load(X{static_cast<uint16_t>(word[j / 2] >> 16 * (j % 2))});
    } else {
      return bit_cast<float>(word[j]);
    }
  }
};

// Any stride; elements past the row's end are zero.
template <class X>
struct Patch<X, false> {
  static constexpr int V = patch_size<X, false>;
  X element[V];

  __device__ __forceinline__ void load(const X* row, const Place<false>& place, int64_t stride) {
#pragma unroll
    for (int j = 0; j < V; ++j) element[j] = place.owns(j) ? row[place.column(j) * stride] : X{};
  }
  __device__ __forceinline__ typename Accumulate<X>::type operator[](int j) const { return dynpool::load(element[j]); }
};

// --- pooled rows and gradients ---------------------------------------------------------------------------------------

// Up to 16 bytes of consecutive elements.
template <class Y, int N>
struct alignas(sizeof(Y) * N) Pack {
  Y element[N];
};

template <class Y, int V>
constexpr int pack_size = V * sizeof(Y) < 16 ? V : static_cast<int>(16 / sizeof(Y));

template <class Y, int V, bool vector, class Acc>
__device__ __forceinline__ void store_as(void* y, int64_t offset, int64_t stride, const Place<vector>& place,
                                         const Acc (&value)[V]) {
  Y* row = static_cast<Y*>(y) + offset;
  if constexpr (vector) {
    constexpr int N = pack_size<Y, V>;
#pragma unroll
    for (int j = 0; j < V; j += N) {
      Pack<Y, N> pack;
#pragma unroll
      for (int n = 0; n < N; ++n) pack.element[n] = store<Y>(value[j + n]);
      *reinterpret_cast<Pack<Y, N>*>(row + place.first + j) = pack;
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (place.owns(j)) row[place.column(j) * stride] = store<Y>(value[j]);
  }
}

template <int V, bool vector, class Acc>
__device__ __forceinline__ void store_row(void* y, DType dtype, int64_t offset, int64_t stride,
                                          const Place<vector>& place, const Acc (&value)[V]) {
  switch (dtype) {
    case DType::float16: return store_as<Half>(y, offset, stride, place, value);
    case DType::bfloat16: return store_as<BFloat16>(y, offset, stride, place, value);
    case DType::float32: return store_as<float>(y, offset, stride, place, value);
    default: return store_as<double>(y, offset, stride, place, value);
  }
}

template <class Y, int V, bool vector, class Acc>
__device__ __forceinline__ void load_as(const void* y, int64_t offset, int64_t stride,
                                        const Place<vector>& place, Acc (&value)[V]) {
  const Y* row = static_cast<const Y*>(y) + offset;
  if constexpr (vector) {
    constexpr int N = pack_size<Y, V>;
#pragma unroll
    for (int j = 0; j < V; j += N) {
      const Pack<Y, N> pack = *reinterpret_cast<const Pack<Y, N>*>(row + place.first + j);
#pragma unroll
      for (int n = 0; n < N; ++n) value[j + n] = static_cast<Acc>(load(pack.element[n]));
    }
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j)
      value[j] = place.owns(j) ? static_cast<Acc>(load(row[place.column(j) * stride])) : Acc(0);
  }
}

template <int V, bool vector, class Acc>
__device__ __forceinline__ void load_row(const void* y, DType dtype, int64_t offset, int64_t stride,
                                         const Place<vector>& place, Acc (&value)[V]) {
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

// Whether every inner row of a tensor begins on a multiple of `bytes` and walks memory element by element. `stride` is
// the member of Axis for this tensor, `step` its stride of frames (or rows), of which there are `steps`.
inline bool aligned(const TemporalPoolParams& p, const void* tensor, DType dtype, int64_t Axis::*stride, int64_t step,
                    int64_t steps, int64_t bytes) {
  const int64_t size = size_of(dtype);
  bool good = reinterpret_cast<uintptr_t>(tensor) % bytes == 0 && p.inner().*stride == 1;
  if (steps > 1) good = good && step * size % bytes == 0;
  for (int a = 0; a + 1 < p.num_axes; ++a)
    if (p.axes[a].size > 1) good = good && p.axes[a].*stride * size % bytes == 0;
  return good;
}

// Whether all that a kernel touches comes in whole patches: x in 16-byte words, the rest in packs of at most 16 bytes.
inline bool in_words(const TemporalPoolParams& p, const void* y) {
  const int64_t patch = 16 / size_of(p.x_dtype), pack = std::min<int64_t>(16, patch * size_of(p.y_dtype));
  return p.inner().size % patch == 0 &&                                      //
         (!p.x || aligned(p, p.x, p.x_dtype, &Axis::x, p.x_t, p.T, 16)) &&  //
         (!p.dx || aligned(p, p.dx, p.x_dtype, &Axis::dx, p.dx_t, p.T, 16)) &&
         aligned(p, y, p.y_dtype, &Axis::y, p.y_w, p.W, pack);
}

}  // namespace dynpool::cuda
