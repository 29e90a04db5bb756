// The ranking support vector machine of exact rank pooling, eq. (1), in T dimensions.
//
// K [T, T] holds the products of the vectors V_t, C' = 2C / (T (T - 1)), d = C' Σ_t u_t V_t, s_t = ⟨d, V_t⟩ = C' (K u)_t.
// Divided by C', the problem and its dual, over the pairs p = (q, t) with q > t and with u = Σ_p b_p (e_q - e_t), are
//
//     min ½ uᵀs + Σ_p max(0, 1 - s_q + s_t)        max Σ b - ½ uᵀs,             0 ≤ b ≤ 1
//     min ½ uᵀs + Σ_p max(0, 1 - s_q + s_t)²       max Σ b - ¼ Σ b² - ½ uᵀs,    0 ≤ b           (squared)
//
// Most pairs are ranked as a matter of course, so b is 0 outside a working set, which starts with neighbouring frames
// and takes in pairs that it misranks, the nearest first. Within it: coordinate ascent, which finds out which b lie at
// a bound, and Newton's method on the others where that costs no more than the sweeps did.
#pragma once
#include "team.h"

namespace dynpool {

constexpr int64_t kSweepsOfRound = 10, kMaxSweeps = 300;  // more is for a solver of another kind
constexpr double kPolishTol = 1e-6;  // gaps below it are for those who want derivatives: u should be good to the last digits

template <class Team>
struct RankSvm {
  Team team;
  int64_t T, pitch, num_pairs = 0;
  const double* K;
  double scale, kappa;  // C', ½ if squared
  double *b, *u, *s, *best_u, *row, *H, *gradient;
  int32_t *pairs, *free_pairs;

  struct Values {
    double primal, dual, factor;  // primal is that of factor · u
  };

  DYNPOOL_TEAM double box(double value) const {
    return value < 0 ? 0 : kappa == 0 && value > 1 ? 1 : value;
  }
  DYNPOOL_TEAM bool is_free(double value) const { return value > 0 && (kappa > 0 || value < 1); }
  // Divisions of 32 bits: those of 64 take several times as long, on a GPU most of all.
  DYNPOOL_TEAM int64_t later(int32_t pair) const { return pair / static_cast<int32_t>(pitch); }
  DYNPOOL_TEAM int64_t earlier(int32_t pair) const { return pair % static_cast<int32_t>(pitch); }
  DYNPOOL_TEAM double slope(int32_t pair) const {
    return 1 - kappa * b[pair] - s[later(pair)] + s[earlier(pair)];
  }
  // ⟨e_q - e_t, e_r - e_v⟩ in the metric C' K.
  DYNPOOL_TEAM double product(int32_t first, int32_t second) const {
    const double *Kq = K + later(first) * pitch, *Kt = K + earlier(first) * pitch;
    const int64_t r = later(second), v = earlier(second);
    return scale * ((Kq[r] - Kt[r]) - (Kq[v] - Kt[v]));
  }

  DYNPOOL_TEAM void start() {
    team.each(pitch, [&](int64_t q) {
      for (int64_t t = 0; t < pitch; ++t) b[q * pitch + t] = -1;
      u[q] = s[q] = best_u[q] = 0;
    });
    num_pairs = T - 1;
    team.each(num_pairs, [&](int64_t t) {
      pairs[t] = static_cast<int32_t>((t + 1) * pitch + t);
      b[pairs[t]] = 0;
    });
  }

  // u and s afresh from b, whose changes have left roundings in them.
  DYNPOOL_TEAM void refresh() {
    team.each(T, [&](int64_t q) {
      double sum = 0;
      for (int64_t t = 0; t < q; ++t) sum += b[q * pitch + t] > 0 ? b[q * pitch + t] : 0;
      for (int64_t r = q + 1; r < T; ++r) sum -= b[r * pitch + q] > 0 ? b[r * pitch + q] : 0;
      u[q] = sum;
    });
    multiply(team, K, pitch, T, scale, u, s);
  }

  // Where all pairs are ranked, if not by a margin of 1, u may be enlarged until they are.
  DYNPOOL_TEAM Values evaluate() {
    const double norm = team.sum(T, [&](int64_t t) { return u[t] * s[t]; });
    const double linear = team.sum(num_pairs, [&](int64_t i) {
      const double value = b[pairs[i]];
      return value - kappa / 2 * value * value;
    });
    const double loss = team.sum(T, [&](int64_t q) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t t = 0; t < q; ++t) {
        const double missed = 1 - s[q] + s[t], value = missed > 0 ? missed : 0;
        sum += kappa > 0 ? value * value : value;
      }
      return sum;
    });
    team.each(T, [&](int64_t q) {
      double least = 1;
      for (int64_t t = 0; t < q; ++t) least = s[q] - s[t] < least ? s[q] - s[t] : least;
      row[q] = least;
    });
    double least = 1;
    for (int64_t q = 1; q < T; ++q) least = row[q] < least ? row[q] : least;
    Values values{norm / 2 + loss, linear - norm / 2, 1};
    if (least > 0 && norm / 2 / (least * least) < values.primal) {
      values.factor = 1 / least;
      values.primal = norm / 2 / (least * least);
    }
    team.sync();  // row is used again
    return values;
  }

  // The nearest `most` misranked pairs of each frame that are outside the working set join it.
  DYNPOOL_TEAM void grow(int64_t most) {
    const double margin = 1 - 1e-9;
    team.each(T, [&](int64_t q) {
      int64_t count = 0;
      for (int64_t t = q - 1; t >= 0 && count < most; --t) count += s[q] - s[t] < margin && b[q * pitch + t] < 0;
      row[q] = static_cast<double>(count);
    });
    team.one([&] {
      int64_t total = num_pairs;
      for (int64_t q = 0; q <= T; ++q) {
        const int64_t count = q < T ? static_cast<int64_t>(row[q]) : 0;
        row[q] = static_cast<double>(total);
        total += count;
      }
    });
    team.each(T, [&](int64_t q) {
      int64_t at = static_cast<int64_t>(row[q]), count = 0;
      for (int64_t t = q - 1; t >= 0 && count < most; --t) {
        const int64_t pair = q * pitch + t;
        if (s[q] - s[t] < margin && b[pair] < 0) {
          b[pair] = 0;
          pairs[at + count++] = static_cast<int32_t>(pair);
        }
      }
    });
    num_pairs = static_cast<int64_t>(row[T]);
    team.sync();
  }

  // Coordinate ascent over the working set, in an order that looks random; returns the largest slope that was left to
  // climb, and counts the updates.
  DYNPOOL_TEAM double sweep(uint64_t seed, int64_t* updates) {
    Shuffle order(num_pairs, seed);
    double steepest = 0;
    for (int64_t i = 0; i < num_pairs; ++i) {
      const int32_t pair = pairs[order.next()];
      const double before = b[pair], climb = slope(pair);
      if ((before == 0 && climb <= 0) || (kappa == 0 && before == 1 && climb >= 0)) continue;
      const double curvature = kappa + product(pair, pair);
      const double after = curvature > 0 ? box(before + climb / curvature) : 1;
      if (after == before) continue;
      const double size = climb < 0 ? -climb : climb;
      steepest = size > steepest ? size : steepest;
      const double *Kq = K + later(pair) * pitch, *Kt = K + earlier(pair) * pitch, change = scale * (after - before);
      team.sync();
      if (team.leads()) b[pair] = after;
      double* scores = s;
      team.lanes(T, [=](int64_t j) { scores[j] += change * (Kq[j] - Kt[j]); });
      ++*updates;
    }
    return steepest;
  }

  // One step of Newton's method for the free pairs, up to the nearest bound. H is [T, T]; more pairs do not fit.
  // Returns the part of the step that was taken, or 0.
  DYNPOOL_TEAM double newton() {
    team.one([&] {
      int64_t count = 0;
      for (int64_t i = 0; i < num_pairs; ++i) {
        if (!is_free(b[pairs[i]])) continue;
        if (count < T) free_pairs[count] = pairs[i];
        ++count;
      }
      row[0] = static_cast<double>(count);
    });
    const int64_t F = static_cast<int64_t>(row[0]);
    team.sync();
    if (F == 0 || F > T) return 0;
    team.each(F, [&](int64_t i) {
      for (int64_t j = 0; j <= i; ++j) H[i * T + j] = product(free_pairs[i], free_pairs[j]);
      H[i * T + i] += kappa;
      gradient[i] = slope(free_pairs[i]);
    });
    solve_symmetric(team, H, T, F, gradient, row, 1e-10);
    double step = 1;
    int64_t nearest = -1;
    for (int64_t i = 0; i < F; ++i) {
      const double value = b[free_pairs[i]], change = gradient[i];
      if (!(change - change == 0)) return 0;  // not finite
      const double bound = change < 0 ? -value / change : kappa == 0 && change > 0 ? (1 - value) / change : 2;
      if (bound < step) {
        step = bound;
        nearest = i;
      }
    }
    team.sync();
    team.each(F, [&](int64_t i) {
      const double value = box(b[free_pairs[i]] + step * gradient[i]);
      b[free_pairs[i]] = i != nearest ? value : gradient[i] < 0 ? 0 : 1;
    });
    refresh();
    return step;
  }

  // Rounds of sweeps until the gap is met or the work is that of a solver of another kind.
  DYNPOOL_TEAM void solve(double tol, int64_t max_iter, const Result& result) {
    start();
    if (T < 2) return finish(team, result, 0, 0, 0);
    const int64_t max_sweeps = max_iter < kMaxSweeps ? max_iter : kMaxSweeps;
    const double budget = 5.0 * T * T * T + 1e6;
    double best_primal = HUGE_VAL, best_dual = 0, work = 0, newton_work = 0;
    int64_t done = 0;
    uint64_t seed = 1;
    for (int64_t most = 1;; most = most < T ? 2 * most : T) {
      double steepest = 0;
      int64_t updates = 0;
      for (int64_t i = 0; i < kSweepsOfRound && done < max_sweeps; ++i) {
        seed = Shuffle::another(seed);
        const double left = sweep(seed, &updates);
        ++done;
        steepest = left > steepest ? left : steepest;
        if (left <= 0.01 * steepest) break;
      }
      refresh();
      work += static_cast<double>(updates * T + 4 * kSweepsOfRound * num_pairs + 3 * T * T);
      const bool met = record(&best_primal, &best_dual, tol);
      if (met || done >= max_sweeps || work > budget) break;
      const double cost = static_cast<double>(T) * T * T / 3;
      if (newton_work + cost <= work) {
        newton_work += cost;
        if (newton() > 0 && record(&best_primal, &best_dual, tol)) break;
      }
      grow(most);
    }
    if (tol < kPolishTol) {
      for (int64_t i = 0; i < 5; ++i) {
        const double step = newton();
        if (step > 0) record(&best_primal, &best_dual, 0);
        if (step == 0 || step == 1) break;
      }
      // Derivatives are made of u and b: of two u that are as good, that of b.
      const Values last = evaluate();
      if (last.primal - best_dual <= tol * last.primal) {
        best_primal = last.primal;
        team.each(T, [&](int64_t t) { best_u[t] = u[t] * last.factor; });
      }
    }
    team.each(T, [&](int64_t t) { u[t] = best_u[t] * scale; });
    finish(team, result, best_primal * scale, best_dual * scale, done);
  }

  DYNPOOL_TEAM bool record(double* best_primal, double* best_dual, double tol) {
    const Values values = evaluate();
    if (values.primal <= *best_primal) {
      *best_primal = values.primal;
      team.each(T, [&](int64_t t) { best_u[t] = u[t] * values.factor; });
    }
    if (values.dual > *best_dual) *best_dual = values.dual;
    return *best_primal - *best_dual <= tol * *best_primal;
  }
};

}  // namespace dynpool
