// Support vector regression of the frames' positions, in T dimensions. With d = Σ_t u_t V_t and s = Ku, the problem and its
// dual are
//
//     min ½ uᵀs + C Σ_t max(0, |t - s_t| - ε)²        max Σ_t (t u_t - ε |u_t| - u_t² / 4C) - ½ uᵀs
//
// Newton's method on the frames outside the tube, u_A = (K_AA + I / 2C)⁻¹ (t - ε sign(t - s))_A, with exact line search.
#pragma once
#include "team.h"

namespace dynpool {

template <class Team>
struct Svr {
  Team team;
  int64_t T, pitch;
  const double* K;
  double C, epsilon;
  double *u, *s, *change, *change_s, *x, *row, *H;
  int32_t* active;

  DYNPOOL_TEAM double excess(int64_t i, double score) const {  // of frame i, outside the tube
    const double distance = static_cast<double>(i + 1) - score;
    return distance > epsilon ? distance - epsilon : distance < -epsilon ? distance + epsilon : 0;
  }
  DYNPOOL_TEAM double dual(const double* v, const double* Kv) const {
    return team.sum(T, [&](int64_t i) {
      const double size = v[i] < 0 ? -v[i] : v[i];
      return static_cast<double>(i + 1) * v[i] - epsilon * size - v[i] * v[i] / (4 * C) - v[i] * Kv[i] / 2;
    });
  }
  DYNPOOL_TEAM double primal() const {
    return team.sum(T, [&](int64_t i) {
      const double outside = excess(i, s[i]);
      return u[i] * s[i] / 2 + C * outside * outside;
    });
  }

  // u of the frames outside the tube as if they stayed there and all others stayed inside; the way there is `change`.
  DYNPOOL_TEAM void newton() {
    team.one([&] {
      int64_t count = 0;
      for (int64_t i = 0; i < T; ++i)
        if (excess(i, s[i]) != 0) active[count++] = static_cast<int32_t>(i);
      row[0] = static_cast<double>(count);
    });
    const int64_t A = static_cast<int64_t>(row[0]);
    team.sync();
    team.each(A, [&](int64_t i) {
      const int64_t t = active[i];
      const double* Kt = K + t * pitch;
      for (int64_t j = 0; j <= i; ++j) H[i * T + j] = Kt[active[j]];
      H[i * T + i] += 1 / (2 * C);
      x[i] = excess(t, s[t]) + s[t];
    });
    solve_symmetric(team, H, T, A, x, row, 1e-16);
    team.each(T, [&](int64_t i) { change[i] = -u[i]; });
    team.each(A, [&](int64_t i) { change[active[i]] += x[i]; });
    multiply(team, K, pitch, T, 1, change, change_s);
  }

  // Slope of the primal problem at u + step · change.
  DYNPOOL_TEAM double slope(double step) const {
    return team.sum(T, [&](int64_t i) {
      const double score = s[i] + step * change_s[i];
      return (u[i] + step * change[i]) * change_s[i] - 2 * C * excess(i, score) * change_s[i];
    });
  }
  DYNPOOL_TEAM double line_search() const {
    if (slope(1) <= 0) return 1;
    double low = 0, high = 1;
    for (int i = 0; i < 40; ++i) {
      const double middle = (low + high) / 2;
      (slope(middle) > 0 ? high : low) = middle;
    }
    return low;
  }

  DYNPOOL_TEAM void solve(double tol, int64_t max_iter, const Result& result) {
    team.each(T, [&](int64_t i) { u[i] = s[i] = 0; });
    double best_dual = 0, value = primal(), step = 1;
    int64_t done = 0;
    while (true) {
      // Two dual points: u, and what the residuals of these scores are multiplied by.
      team.each(T, [&](int64_t i) { x[i] = 2 * C * excess(i, s[i]); });
      multiply(team, K, pitch, T, 1, x, row);
      const double of_u = dual(u, s), of_scores = dual(x, row);
      best_dual = of_u > best_dual ? of_u : best_dual;
      best_dual = of_scores > best_dual ? of_scores : best_dual;
      const bool solved = done > 0 && value - best_dual <= tol * value;  // d = 0 may be near, and ranks nothing
      if (solved || done >= max_iter || step == 0) break;
      newton();
      step = line_search();
      team.each(T, [&](int64_t i) { u[i] += step * change[i]; });
      multiply(team, K, pitch, T, 1, u, s);
      value = primal();
      ++done;
    }
    finish(team, result, value, best_dual, done);
  }
};

}  // namespace dynpool
