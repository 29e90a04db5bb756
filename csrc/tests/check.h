// CHECK(condition, format, ...): prints the case and counts.
#pragma once
#include <cstdio>

namespace dynpool::test {

inline int failures = 0;
inline int checks = 0;

}  // namespace dynpool::test

#define CHECK(condition, ...)                                             \
  do {                                                                    \
    ++::dynpool::test::checks;                                            \
    if (!(condition)) {                                                   \
      if (++::dynpool::test::failures <= 40) {                            \
        std::printf("%s:%d: %s\n    ", __FILE__, __LINE__, #condition);   \
        std::printf(__VA_ARGS__);                                         \
        std::printf("\n");                                                \
      }                                                                   \
    }                                                                     \
  } while (false)
