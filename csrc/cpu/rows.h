// Rows of weights and the frames that they weigh. Windows, whose first and last frames rise from row to row, open and close
// one after the other: kernels keep what they need of a row for as long as it is open, and look at no others.
#pragma once
#include "../temporal_pool.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

struct RowRange {
  int64_t begin, end;
};

class OpenRows {
 public:
  OpenRows(const TemporalPoolParams& p, int64_t clip) : p_(p), clip_(clip) {
    int64_t first = 0, end = 0;
    for (int64_t w = 0; w < p.W && ordered_; ++w) {
      const Band band = band_of(p, clip, w);
      if (!band.count) continue;
      ordered_ = band.first >= first && band.first + band.count >= end;
      first = band.first;
      end = band.first + band.count;
    }
  }

  // All rows that weigh one of the frames [begin, end), perhaps with others; both rise from call to call.
  RowRange of(int64_t begin, int64_t end) {
    if (!ordered_) return {0, p_.W};
    while (open_.begin < p_.W && is_over(open_.begin, begin)) ++open_.begin;
    if (open_.end < open_.begin) open_.end = open_.begin;
    while (open_.end < p_.W && has_begun(open_.end, end)) ++open_.end;
    return open_;
  }

  // The most rows of a clip that are open for as many frames at a time.
  static int64_t most(const TemporalPoolParams& p, int64_t clip, int64_t frames) {
    if (!p.bands || p.W == 1) return p.W;
    int64_t most = 1;
    OpenRows rows(p, clip);
    for (int64_t t = 0; t < p.T; t += frames) {
      const RowRange open = rows.of(t, t + frames);
      if (open.end - open.begin > most) most = open.end - open.begin;
    }
    return most;
  }

 private:
  bool is_over(int64_t w, int64_t frame) const {
    const Band band = band_of(p_, clip_, w);
    return !band.count || band.first + band.count <= frame;
  }
  bool has_begun(int64_t w, int64_t end) const {
    const Band band = band_of(p_, clip_, w);
    return !band.count || band.first < end;
  }

  const TemporalPoolParams& p_;
  int64_t clip_;
  bool ordered_ = true;
  RowRange open_ = {0, 0};
};

// What belongs to each of the rows that are open, in the place of one that is over.
template <class Acc>
struct RowRing {
  Acc* values;
  int64_t pitch, slots;
  Acc* operator[](int64_t w) const { return values + w % slots * pitch; }
};

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
