// The sums of a tile, row after row or of rows that share frames together, and where they go.
#pragma once
#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// `add_together` for elements begin + i of rows w to w + kTogether, or false.
template <class Acc, class X>
bool accumulate_together(const RowRing<Acc>& rows, int64_t w, int64_t begin, const Strided<X>& x, const Acc* a,
                         int64_t pitch, int64_t count, int64_t n) {
  if constexpr (sums_together<X>) {
    float* const sums[] = {rows[w] + begin, rows[w + 1] + begin, rows[w + 2] + begin, rows[w + 3] + begin};
    const float* const weights[] = {a, a + pitch, a + 2 * pitch, a + 3 * pitch};
    add_together(sums, x, weights, 1, count, n);
  }
  return sums_together<X>;
}

// Rows that share frames: ψ of kFrames frames at a time, of as many pixels as the nearest cache holds, then every row that
// weighs them. finish(w) comes when a row is over, in order.
template <Nonlinearity psi, bool normalized, class Acc, class X, class Finish>
void accumulate_rows(const RowRing<Acc>& sums, Acc* psi_frames, const TileFrames<X>& frames, const TemporalPoolParams& p,
                     int64_t clip, const TilePixels<Acc>& pixels, Finish finish) {
  const Acc* weights = static_cast<const Acc*>(p.weights) + clip * p.W * p.K;
  const int64_t part = normalized && !pixels.table ? sums.pitch : kPart;  // means are those of a whole tile
  OpenRows rows(p, clip);
  int64_t begun = 0, finished = 0;
  const auto finish_until = [&](int64_t end) {
    for (; finished < end; finish(finished++))
      if (finished == begun) clear(sums[begun++], frames.n);  // without a frame
  };
  for (int64_t t = 0; t < p.T; t += kFrames) {
    const int64_t end = t + kFrames < p.T ? t + kFrames : p.T;
    const X* x = nullptr;
    int64_t stride = 0;
    const RowRange open = rows.of(t, end);
    finish_until(open.begin);
    for (; begun < open.end; ++begun) clear(sums[begun], frames.n);
    for (int64_t begin = 0; begin < frames.n; begin += part) {
      const int64_t n = frames.n - begin < part ? frames.n - begin : part;
      bool ready = false;
      for (int64_t w = open.begin; w < open.end; ++w) {
        const Band band = band_of(p, clip, w);
        const int64_t from = band.first > t ? band.first : t;
        const int64_t to = band.first + band.count < end ? band.first + band.count : end;
        if (from >= to) continue;
        if (!x) x = frames.block(t, end - t, &stride);
        const Acc* a = weights + w * p.K + from - band.first;
        const bool together = !p.bands && w + kTogether <= open.end;
        if constexpr (psi == Nonlinearity::identity) {
          const Strided<X> block{x + (from - t) * stride + begin, stride};
          if (together && accumulate_together(sums, w, begin, block, a, p.K, to - from, n)) {
            w += kTogether - 1;
          } else {
            accumulate<psi, false>(sums[w] + begin, block, a, to - from, pixels, n);
          }
        } else {
          for (int64_t u = 0; !ready && u < end - t; ++u)
            fill_psi<psi, normalized>(psi_frames + u * part, x + u * stride + begin, pixels, n);
          ready = true;
          const Strided<Acc> block{psi_frames + (from - t) * part, part};
          const int64_t length = pixels.table ? (n + kBlock - 1) / kBlock * kBlock : n;
          if (together && accumulate_together(sums, w, begin, block, a, p.K, to - from, length)) {
            w += kTogether - 1;
          } else {
            accumulate<Nonlinearity::identity, false>(sums[w] + begin, block, a, to - from, pixels, length);
          }
        }
      }
    }
  }
  finish_until(p.W);
}

// Sums of rows that lie a pitch apart, to where they belong.
template <class Y, class Acc>
void store_rows(Y* y, int64_t y_w, int64_t stride, const Acc* values, int64_t pitch, int64_t rows, int64_t n) {
  if constexpr (std::is_same<Y, Acc>::value)
    if (rows > 1) return unpack(y, y_w, stride, values, pitch, rows, n);
  for (int64_t i = 0; stride == 1 && i < n; ++i) y[i] = store<Y>(values[i]);
  for (int64_t i = 0; stride != 1 && i < n; ++i)
    for (int64_t r = 0; r < rows; ++r) y[r * y_w + i * stride] = store<Y>(values[r * pitch + i]);
}

template <class Acc>
void store_rows(const TemporalPoolParams& p, int64_t offset, const Acc* values, int64_t pitch, int64_t rows, int64_t n) {
  const auto to = [&](auto* y) { store_rows(y + offset, p.y_w, p.inner().y, values, pitch, rows, n); };
  switch (p.y_dtype) {
    case DType::float16: return to(static_cast<Half*>(p.y));
    case DType::bfloat16: return to(static_cast<BFloat16*>(p.y));
    case DType::float32: return to(static_cast<float*>(p.y));
    default: return to(static_cast<double*>(p.y));
  }
}

// What normalisation leaves to do after the sum over frames (pixel.h).
template <Nonlinearity psi, class Acc>
void normalize_sum(Acc* acc, const Acc* a, int64_t count, const TilePixels<Acc>& pixels, int64_t n) {
  Acc weight_sum = 0;
  for (int64_t k = 0; k < count; ++k) weight_sum += a[k];
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (psi == Nonlinearity::identity) {
      acc[i] = (acc[i] - pixels.mean[i] * weight_sum) * pixels.inverse_std[i];
    } else {
      acc[i] *= apply_psi<psi>(pixels.inverse_std[i]);
    }
  }
}

// The table of a tile whose pixels share a channel, where it is worth its filling; kept until the channel changes.
template <Nonlinearity psi, bool inside>
class TileTable {
 public:
  const LookupTable* of(const TemporalPoolParams& p, const Row& row, int64_t n) {
    const bool one_channel = !inside || (p.channel_period == 0 && p.inner().channel == 0);
    if (!one_channel || n * p.T < 8192) return nullptr;
    const int64_t channel = inside ? row.channel : 0;
    if (channel != filled_) {
      table_.template fill<psi>(inside ? normalization_of<float>(p, channel) : Normalization<float>{0, 1});
      filled_ = channel;
    }
    return &table_;
  }

 private:
  LookupTable table_;
  int64_t filled_ = -1;
};

// Tasks [begin, end) of the forward pass.
template <class X, Nonlinearity psi, bool inside>
void forward_tasks(const TemporalPoolParams& p, int64_t begin, int64_t end) {
  using Acc = typename Accumulate<X>::type;
  const Tasks tasks(p);
  const bool shared = rows_share_frames(p) && !(p.bands && lie_across<X, psi, inside>(p.x_t, p.inner().x, p.K));
  const bool outside = !inside && (p.mean || p.std);
  int64_t slots = 1;
  for (int64_t clip = 0; shared && clip < p.clips; ++clip) {
    const int64_t most = OpenRows::most(p, clip, kFrames);
    slots = most > slots ? most : slots;
  }
  const int64_t pitch = row_pitch<Acc>(tasks);
  const std::unique_ptr<TilePixels<Acc>> pixels(new TilePixels<Acc>);
  const std::unique_ptr<Acc[]> acc(new Acc[slots * pitch + (shared ? kFrames * (pitch > kPart ? pitch : kPart) : 0)]);
  const RowRing<Acc> sums{acc.get(), pitch, slots};
  const int64_t packed_pitch = row_pitch<X>(tasks);
  const std::unique_ptr<X[]> packed(p.inner().x == 1 ? nullptr : new X[kFrames * packed_pitch]);
  TileTable<psi, inside> table;
  const bool transposes = p.W > 1 && p.y_w < p.inner().y;  // rows that are over wait for others, to be stored pixel by pixel
  const std::unique_ptr<Acc[]> over(transposes ? new Acc[kFrames * pitch] : nullptr);

  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tasks.tile(task);
    const Row row = locate_row(p, tile.outer);
    const TileFrames<X> frames{static_cast<const X*>(p.x) + row.x + tile.begin * p.inner().x, p.x_t, p.inner().x,
                               tile.n, packed.get(), packed_pitch};
    if constexpr (looks_up<X, psi>) pixels->table = table.of(p, row, tile.n);
    if (outside || (inside && !pixels->table)) pixels->fill(p, row, tile.begin, tile.n);
    const Acc* weights = static_cast<const Acc*>(p.weights) + row.clip * p.W * p.K;
    const auto finish = [&](int64_t w) {
      if constexpr (looks_up<X, psi>)
        if (pixels->table) natural_order(sums[w], tile.n);
      if (outside) normalize_sum<psi>(sums[w], weights + w * p.K, band_of(p, row.clip, w).count, *pixels, tile.n);
      const int64_t y = row.y + tile.begin * p.inner().y;
      if (!transposes) return store_rows(p, y + w * p.y_w, sums[w], pitch, 1, tile.n);
      const int64_t waiting = w % kFrames + 1;
      memcpy(over.get() + (waiting - 1) * pitch, sums[w], tile.n * sizeof(Acc));
      if (waiting == kFrames || w + 1 == p.W)
        store_rows(p, y + (w + 1 - waiting) * p.y_w, over.get(), pitch, waiting, tile.n);
    };
    if (shared) {
      accumulate_rows<psi, inside>(sums, acc.get() + slots * pitch, frames, p, row.clip, *pixels, finish);
      continue;
    }
    for (int64_t w = 0; w < p.W; ++w) {
      clear(sums[w], tile.n);
      accumulate_band<psi, inside>(sums[w], frames, band_of(p, row.clip, w), weights + w * p.K, *pixels);
      finish(w);
    }
  }
}

template <class X>
void forward_of(const TemporalPoolParams& p, int64_t begin, int64_t end) {
  if (p.nonlinearity == Nonlinearity::identity) return forward_tasks<X, Nonlinearity::identity, false>(p, begin, end);
  if (normalizes_inside<Nonlinearity::sqrt>(p)) return forward_tasks<X, Nonlinearity::sqrt, true>(p, begin, end);
  return forward_tasks<X, Nonlinearity::sqrt, false>(p, begin, end);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
