// Dimensions of a tensor → the axes of TemporalPoolParams (temporal_pool.h, "Layout").
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "temporal_pool.h"

namespace dynpool {
namespace {

// Whether `outer` and `inner` walk memory as one axis, in every tensor.
bool contiguous(const Axis& outer, const Axis& inner) {
  return outer.x == inner.x * inner.size && outer.y == inner.y * inner.size && outer.dx == inner.dx * inner.size &&
         outer.clip == 0 && inner.clip == 0 && outer.channel == 0;
}

Axis merged(const Axis& outer, Axis inner) {
  inner.size *= outer.size;
  inner.channel = 0;
  return inner;
}

// Outermost first: the clips, then falling strides; an expanded dimension (stride 0) repeats what lies inside it.
bool before(const Axis& a, const Axis& b) {
  if (a.clip != b.clip) return a.clip > b.clip;
  if ((a.x == 0) != (b.x == 0)) return a.x == 0;
  return a.x != b.x ? a.x > b.x : a.y > b.y;
}

}  // namespace

void make_axes(TemporalPoolParams& p, const TensorLayout& layout) {
  p.T = layout.sizes[layout.dim];
  p.x_t = layout.x_strides[layout.dim];
  p.y_w = layout.y_strides[layout.dim];
  p.dx_t = layout.dx_strides ? layout.dx_strides[layout.dim] : 0;

  std::vector<Axis> axes;
  for (int d = 0; d < layout.num_dims; ++d) {
    if (d == layout.dim || layout.sizes[d] == 1) continue;
    Axis axis;
    axis.size = layout.sizes[d];
    axis.x = layout.x_strides[d];
    axis.y = layout.y_strides[d];
    axis.dx = layout.dx_strides ? layout.dx_strides[d] : 0;
    axis.clip = p.clips > 1 && d == 0;
    axis.channel = p.channels > 1 && d == layout.channel_dim;
    axes.push_back(axis);
  }
  std::stable_sort(axes.begin(), axes.end(), before);

  std::vector<Axis> kept;
  for (const Axis& axis : axes) {
    if (!kept.empty() && axis.channel == 0 && contiguous(kept.back(), axis)) {
      kept.back() = merged(kept.back(), axis);
    } else {
      kept.push_back(axis);
    }
  }
  p.channel_period = 0;
  if (kept.size() > 1 && kept.back().channel && contiguous(kept[kept.size() - 2], kept.back())) {
    p.channel_period = kept.back().size;  // channels last
    const Axis inner = kept.back();
    kept.pop_back();
    kept.back() = merged(kept.back(), inner);
  }
  if (kept.empty() || kept.back().clip) {  // the inner axis lies within one clip
    Axis one;
    one.x = one.y = one.dx = 1;
    kept.push_back(one);
  }

  if (kept.size() > static_cast<size_t>(kMaxAxes)) {
    throw std::invalid_argument("x has " + std::to_string(kept.size()) + " dimensions that cannot be merged, at most " +
                                std::to_string(kMaxAxes) + " are allowed");
  }
  p.num_axes = static_cast<int>(kept.size());
  std::copy(kept.begin(), kept.end(), p.axes);
}

}  // namespace dynpool
