// The problems of exact rank pooling in T dimensions, for a clip.
#pragma once
#include "rank_svm.h"
#include "svr.h"

namespace dynpool {

enum class Objective : int { ranksvm = 0, ranksvm_squared = 1, svr = 2 };

struct SolverParams {
  Objective objective;
  int64_t clips, T;
  const int64_t* lengths;  // [clips], of the frames that count
  const double* K;         // [clips, T, T]: products of the vectors V_t
  double C, epsilon, tol;
  int64_t max_iter;
  double* u;            // [clips, T]: d = Σ u_t V_t
  double* value;        // [clips], of the objective
  double* gap;          // [clips], above the best dual value; below it where roundings of K have the last word
  int64_t* iterations;  // [clips]
  double* b;            // [clips, T, T], of the ranking machine: what pairs weigh, negative where they were not looked at
  int32_t* pairs;       // scratch [clips, T (T - 1) / 2], of the ranking machine
  double* scratch;      // [clips, T, T + 8]
};

template <class Team>
DYNPOOL_TEAM void solve_clip(const SolverParams& p, int64_t clip, Team team) {
  const int64_t length = p.lengths[clip], T = length < p.T ? length : p.T;
  double* u = p.u + clip * p.T;
  double* scratch = p.scratch + clip * p.T * (p.T + 8);
  double* rows = scratch + p.T * p.T;
  const double* K = p.K + clip * p.T * p.T;
  const Result result{p.value + clip, p.gap + clip, p.iterations + clip};
  team.each(p.T, [&](int64_t t) { u[t] = 0; });

  if (p.objective == Objective::svr) {
    Svr<Team> svr;
    svr.team = team;
    svr.T = T;
    svr.pitch = p.T;
    svr.K = K;
    svr.C = p.C;
    svr.epsilon = p.epsilon;
    svr.u = u;
    svr.H = scratch;
    svr.s = rows;
    svr.change = rows + p.T;
    svr.change_s = rows + 2 * p.T;
    svr.x = rows + 3 * p.T;
    svr.row = rows + 4 * p.T;
    svr.active = reinterpret_cast<int32_t*>(rows + 5 * p.T);
    return svr.solve(p.tol, p.max_iter, result);
  }
  RankSvm<Team> svm;
  svm.team = team;
  svm.T = T;
  svm.pitch = p.T;
  svm.K = K;
  svm.scale = T < 2 ? 0 : 2 * p.C / (static_cast<double>(T) * static_cast<double>(T - 1));
  svm.kappa = p.objective == Objective::ranksvm_squared ? 0.5 : 0;
  svm.b = p.b + clip * p.T * p.T;
  svm.u = u;
  svm.H = scratch;
  svm.s = rows;
  svm.best_u = rows + p.T;
  svm.row = rows + 2 * p.T;  // T + 1 of them
  svm.gradient = rows + 4 * p.T;
  svm.free_pairs = reinterpret_cast<int32_t*>(rows + 5 * p.T);
  svm.pairs = p.pairs + clip * (p.T * (p.T - 1) / 2);
  svm.solve(p.tol, p.max_iter, result);
}

}  // namespace dynpool
