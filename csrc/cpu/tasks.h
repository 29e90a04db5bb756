// How the CPU kernels cut the work up. Nothing here depends on the number of threads, so neither do the results.
#pragma once
#include "../planes.h"
#include "../temporal_pool.h"

namespace dynpool {

constexpr int64_t kTile = 16384;  // elements at most

struct Tile {
  int64_t outer, begin, n;
};

// 16 KB of a frame: long enough a run for the memory to stream, short enough for the sums of all rows that share frames
// to stay in a second-level cache.
DYNPOOL_HOST_DEVICE int64_t tile_length(const TemporalPoolParams& p) {
  const int64_t length = p.x_dtype == DType::uint8 ? kTile : p.x_dtype == DType::float64 ? kTile / 8 : kTile / 4;
  const int64_t rows = p.W < 8 ? 8 : p.W;
  const int64_t room = (int64_t{1} << 17) / rows / 512 * 512;
  return room < 512 ? 512 : room < length ? room : length;
}

// Tiles of all inner rows, in order; those of one clip stand together, because its axis is the outermost.
struct Tasks {
  int64_t inner, tiles_per_row, length, count;

  DYNPOOL_HOST_DEVICE explicit Tasks(const TemporalPoolParams& p) : Tasks(p, tile_length(p)) {}
  DYNPOOL_HOST_DEVICE Tasks(const TemporalPoolParams& p, int64_t longest) {
    inner = p.inner().size;
    const int64_t outer = p.num_outer();
    const int64_t share = (inner * outer / 16 + 511) / 512 * 512;  // enough tiles for a few threads
    length = share < 512 ? 512 : share < longest ? share : longest;
    tiles_per_row = (inner + length - 1) / length;
    count = outer * tiles_per_row;
  }
  DYNPOOL_HOST_DEVICE Tile tile(int64_t task) const {
    const int64_t begin = task % tiles_per_row * length;
    return {task / tiles_per_row, begin, inner - begin < length ? inner - begin : length};
  }
};

// Whether some frames are weighed by several rows, which should then share their ψ.
DYNPOOL_HOST_DEVICE bool rows_share_frames(const TemporalPoolParams& p) {
  if (p.W == 1) return false;
  if (!p.bands) return true;
  for (int64_t clip = 0; clip < p.clips; ++clip) {
    int64_t end = 0;
    for (int64_t w = 0; w < p.W; ++w) {
      const Band band = band_of(p, clip, w);
      if (band.count && band.first < end) return true;
      if (band.count) end = band.first + band.count;
    }
  }
  return false;
}

// Backward: consecutive tasks of one clip, summed on their own; the chunks' sums are added in order afterwards.
struct Chunk {
  int64_t begin, end;
};

struct PartialSums {
  double* dweights;  // [W, K] of the chunk's clip
  double* dmean;     // [channels]; null together with dstd
  double* dstd;
};

// What the products of a clip's frames ψ_t - c are added to (gram.h); without a c where it is 0.
struct GramSums {
  int64_t rows;   // T rounded up to whole register blocks, the pitch of K
  double* K;      // [rows, rows], the lower triangle
  double* cross;  // [rows]
  double* norm;   // [1]
  bool of_all;    // c is the mean of all frames
};

constexpr int64_t kCentre = 16;  // frames, at most, whose mean c is, if not of all
constexpr int64_t kGramBlock = 16;  // frames of every instruction set's vectors divide it

// Bytes side by side, which some instruction sets multiply as such.
DYNPOOL_HOST_DEVICE bool multiplies_bytes(const TemporalPoolParams& p) {
  return p.x_dtype == DType::uint8 && p.nonlinearity == Nonlinearity::identity && !p.mean && !p.std &&
         p.inner().x == 1;
}

// Pixels of a tile, whose frames should stay in a second-level cache; a multiple of kStep of gram.h.
DYNPOOL_HOST_DEVICE int64_t gram_pixels(const TemporalPoolParams& p) {
  return (p.T <= 256 ? 512 : p.T <= 512 ? 256 : 128) * (multiplies_bytes(p) ? 8 : 1);
}

// Kernels of one instruction set. planes: of uint8 alone.
struct Kernels {
  void (*forward)(const TemporalPoolParams& p, int64_t begin, int64_t end);
  void (*backward)(const TemporalPoolParams& p, const Chunk& chunk, const PartialSums& partial);
  void (*gram)(const TemporalPoolParams& p, const Chunk& chunk, const GramSums& sums);
  void (*planes)(const PlanesParams& p, int64_t begin, int64_t end) = nullptr;
};

}  // namespace dynpool
