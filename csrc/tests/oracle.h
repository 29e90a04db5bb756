// temporal_pool and its gradients once more: naive loops in double over logical indices, from the formulas of
// temporal_pool.h alone. Beside each result stands the size of its terms, from which the tests derive tolerances.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "../temporal_pool.h"

namespace dynpool::test {

// --- storage types, decoded independently of pixel.h ------------------------------------------------------------------

inline int64_t bytes_of(DType dtype) {
  const int64_t bytes[] = {1, 2, 2, 4, 8};
  return bytes[static_cast<int>(dtype)];
}

inline double decode_bits(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
}

inline double decode(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::uint8: return static_cast<const uint8_t*>(data)[i];
    case DType::float16: return decode_bits(static_cast<const uint16_t*>(data)[i], 5, 10);
    case DType::bfloat16: return decode_bits(static_cast<const uint16_t*>(data)[i], 8, 7);
    case DType::float32: return static_cast<const float*>(data)[i];
    default: return static_cast<const double*>(data)[i];
  }
}

// Half the distance of neighbours, relative; and the smallest step.
inline double rounding(DType dtype) {
  const double unit[] = {0, 0x1p-11, 0x1p-8, 0x1p-24, 0x1p-53};
  return unit[static_cast<int>(dtype)];
}
inline double smallest(DType dtype) { return dtype == DType::float16 ? 0x1p-24 : dtype == DType::bfloat16 ? 1e-38 : 1e-44; }

// --- the problem ------------------------------------------------------------------------------------------------------

struct Bound {
  double value = 0, terms = 0;  // Σ and Σ|·|, the latter weighed by how ill-conditioned a term is
  void add(double term, double condition = 1) { add_sized(term, std::fabs(term) * condition); }
  void add_sized(double term, double size) {
    value += term;
    terms += size;
  }
};

// Logical tensors: frames [T, n] of a clip list, element e of frame t of the (flattened) other dimensions.
struct Problem {
  int64_t T, W, K, clips, channels, elements;
  Nonlinearity psi;
  bool has_bands;
  std::vector<int64_t> bands;        // [clips, W, 2]
  std::vector<double> A;             // [clips, W, K]
  std::vector<double> mean, std;     // [channels] or empty
  std::vector<int64_t> clip_of, channel_of;  // [elements]
  std::vector<double> x;             // [T, elements]
  std::vector<double> g;             // [W, elements]

  bool in_band(int64_t clip, int64_t w, int64_t t, int64_t* k) const {
    int64_t first = 0, count = T;
    if (has_bands) {
      first = bands[(clip * W + w) * 2];
      count = bands[(clip * W + w) * 2 + 1];
      if (first < 0 || first >= T || count < 0) return false;
    }
    *k = t - first;
    return *k >= 0 && *k < count && *k < K;
  }
  double z(int64_t t, int64_t e) const {
    const double m = mean.empty() ? 0 : mean[channel_of[e]], s = std.empty() ? 1 : std[channel_of[e]];
    return (x[t * elements + e] - m) / s;
  }
  // How much larger than z its rounding may be: 1 without a mean.
  double condition(int64_t t, int64_t e) const {
    if (mean.empty()) return 1;
    const double v = x[t * elements + e], m = mean[channel_of[e]];
    return v == m ? 1 : (std::fabs(v) + std::fabs(m)) / std::fabs(v - m);
  }
  // Of ψ(z), for tolerances. The identity's mean may be subtracted after the sum (pixel.h), where x and m have rounded.
  double size(int64_t t, int64_t e) const {
    if (psi != Nonlinearity::identity || mean.empty()) return std::fabs(psi_of(z(t, e))) * condition(t, e);
    return (std::fabs(x[t * elements + e]) + std::fabs(mean[channel_of[e]])) * std::fabs(inverse_std(e));
  }
  double inverse_std(int64_t e) const { return std.empty() ? 1 : 1 / std[channel_of[e]]; }
  double psi_of(double v) const {
    return psi == Nonlinearity::identity ? v : std::copysign(std::sqrt(std::fabs(v)), v);
  }
  double dpsi_of(double v) const {
    if (psi == Nonlinearity::identity) return 1;
    return v == 0 ? 0 : 0.5 / std::sqrt(std::fabs(v));
  }
};

inline std::vector<Bound> pool(const Problem& p) {
  std::vector<Bound> y(p.W * p.elements);
  for (int64_t w = 0; w < p.W; ++w)
    for (int64_t e = 0; e < p.elements; ++e)
      for (int64_t t = 0, k; t < p.T; ++t)
        if (p.in_band(p.clip_of[e], w, t, &k)) {
          const double a = p.A[(p.clip_of[e] * p.W + w) * p.K + k];
          y[w * p.elements + e].add_sized(a * p.psi_of(p.z(t, e)), std::fabs(a) * p.size(t, e));
        }
  return y;
}

struct Gradients {
  std::vector<Bound> dx, dweights, dmean, dstd;
};

inline Gradients pool_backward(const Problem& p) {
  Gradients d;
  d.dx.resize(p.T * p.elements);
  d.dweights.resize(p.clips * p.W * p.K);
  d.dmean.resize(p.channels);
  d.dstd.resize(p.channels);
  for (int64_t t = 0; t < p.T; ++t) {
    for (int64_t e = 0; e < p.elements; ++e) {
      bool weighed = false;
      Bound G;
      const double z = p.z(t, e), condition = p.condition(t, e);
      for (int64_t w = 0, k; w < p.W; ++w) {
        if (!p.in_band(p.clip_of[e], w, t, &k)) continue;
        const int64_t n = (p.clip_of[e] * p.W + w) * p.K + k;
        weighed = true;
        G.add(p.A[n] * p.g[w * p.elements + e]);
        d.dweights[n].add(p.g[w * p.elements + e] * p.psi_of(z), condition);
      }
      if (!weighed) continue;
      const double factor = p.dpsi_of(z) * p.inverse_std(e);
      Bound& dx = d.dx[t * p.elements + e];
      dx.value = G.value * factor;
      dx.terms = G.terms * std::fabs(factor) * condition;
      Bound& dmean = d.dmean[p.channel_of[e]];
      dmean.value -= dx.value;
      dmean.terms += dx.terms;
      Bound& dstd = d.dstd[p.channel_of[e]];
      dstd.value -= dx.value * z;
      dstd.terms += dx.terms * std::fabs(z) * condition;
    }
  }
  return d;
}

}  // namespace dynpool::test
