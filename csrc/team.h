// A team of threads that solves the problem of one clip: a thread of a CPU, or a block of a GPU. The text of a solver is
// the same for both: all threads of a team come to every call of a method, which ends in a barrier, and know the same
// scalars.
//
//     each(n, f)   f(0) … f(n - 1), in any order        lanes(n, f)   the same, as vectors
//     sum(n, f)    f(0) + … + f(n - 1)                  one(f)        f() on one thread; leads(): is this it?
#pragma once
#include <cmath>

#include "temporal_pool.h"

#ifdef __CUDACC__
#define DYNPOOL_TEAM __device__
#else
#define DYNPOOL_TEAM
#endif

namespace dynpool {

// Where a solver puts what it knows of its solution.
struct Result {
  double *value, *gap;
  int64_t* iterations;
};

template <class Team>
DYNPOOL_TEAM void finish(const Team& team, const Result& result, double primal, double dual, int64_t iterations) {
  team.one([&] {
    *result.value = primal;
    *result.gap = primal - dual;
    *result.iterations = iterations;
  });
}

// x = H⁻¹x for symmetric H [n, pitch], of which the lower triangle is overwritten by its Cholesky factor L. Unknowns that
// depend on earlier ones, their pivots less than `least` of their diagonal, stay 0. diagonal [n] is scratch.
template <class Team>
DYNPOOL_TEAM void solve_symmetric(const Team& team, double* H, int64_t pitch, int64_t n, double* x, double* diagonal,
                                  double least) {
  team.each(n, [&](int64_t i) { diagonal[i] = H[i * pitch + i]; });
  for (int64_t k = 0; k < n; ++k) {
    const double* Lk = H + k * pitch;
    team.each(n - k, [&](int64_t r) {
      double* Li = H + (k + r) * pitch;
      double product = 0;
#pragma omp simd reduction(+ : product)
      for (int64_t j = 0; j < k; ++j) product += Li[j] * Lk[j];
      Li[k] -= product;
    });
    const double pivot = Lk[k], factor = pivot > least * diagonal[k] ? 1 / sqrt(pivot) : 0;
    team.sync();
    team.each(n - k, [&](int64_t r) { H[(k + r) * pitch + k] *= factor; });
  }
  for (int64_t k = 0; k < n; ++k) {
    const double pivot = H[k * pitch + k], value = pivot > 0 ? x[k] / pivot : 0;
    team.sync();
    team.each(n - k, [&](int64_t r) { x[k + r] = r == 0 ? value : x[k + r] - H[(k + r) * pitch + k] * value; });
  }
  for (int64_t k = n - 1; k >= 0; --k) {
    const double pivot = H[k * pitch + k], value = pivot > 0 ? x[k] / pivot : 0;
    team.sync();
    team.each(k + 1, [&](int64_t i) { x[i] = i == k ? value : x[i] - H[k * pitch + i] * value; });
  }
}

// s = scale · Ku for K [n, pitch]
template <class Team>
DYNPOOL_TEAM void multiply(const Team& team, const double* K, int64_t pitch, int64_t n, double scale, const double* u,
                           double* s) {
  team.each(n, [&](int64_t i) {
    double sum = 0;
    const double* row = K + i * pitch;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < n; ++t) sum += row[t] * u[t];
    s[i] = scale * sum;
  });
}

// Step i of a walk through n things in an order that looks random, another for every seed.
struct Shuffle {
  int64_t n, step, at;

  DYNPOOL_HOST_DEVICE Shuffle(int64_t n, uint64_t seed) : n(n) {
    step = 1 + static_cast<int64_t>(seed >> 33) % n;
    at = static_cast<int64_t>(seed >> 3 & 0xffffff) % n;
    while (gcd(step, n) != 1) ++step;
  }
  DYNPOOL_HOST_DEVICE int64_t next() {
    at += step;
    at -= at >= n ? n : 0;
    at -= at >= n ? n : 0;
    return at;
  }
  DYNPOOL_HOST_DEVICE static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
  DYNPOOL_HOST_DEVICE static uint64_t another(uint64_t seed) { return seed * 6364136223846793005u + 1442695040888963407u; }
};

}  // namespace dynpool
