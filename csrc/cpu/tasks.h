// How the CPU kernels cut the work up. Nothing here depends on the number of threads, so neither do the results.
#pragma once
#include "../temporal_pool.h"

namespace dynpool {

constexpr int64_t kTile = 4096;  // elements: 16 KB of float accumulators, in a first-level cache of 32 KB or more

struct Tile {
  int64_t outer, begin, n;
};

// Tiles of all inner rows, in order; those of one clip stand together, because its axis is the outermost.
struct Tasks {
  int64_t inner, tiles_per_row, length, count;

  DYNPOOL_HOST_DEVICE explicit Tasks(const TemporalPoolParams& p) {
    inner = p.inner().size;
    const int64_t outer = p.num_outer();
    length = inner * outer >= 16 * kTile ? kTile : kTile / 8;  // enough tiles for a few threads
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

// Kernels of one instruction set.
struct Kernels {
  void (*forward)(const TemporalPoolParams& p, int64_t begin, int64_t end);
  void (*backward)(const TemporalPoolParams& p, const Chunk& chunk, const PartialSums& partial);
};

}  // namespace dynpool
