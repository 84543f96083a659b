// Integer arithmetic that throws instead of wrapping. For sizes that come from files,
// configurations or products of degrees.
#pragma once

#include <cstdint>
#include <span>

#include "base/errors.h"

namespace torchtitan::base {

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t result = 0;
  check_value(!__builtin_add_overflow(a, b, &result), "integer overflow: ", a, " + ",
              b);
  return result;
}

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t result = 0;
  check_value(!__builtin_mul_overflow(a, b, &result), "integer overflow: ", a, " * ",
              b);
  return result;
}

// Product of all values; 1 for none.
inline int64_t checked_product(std::span<const int64_t> values) {
  int64_t result = 1;
  for (const int64_t value : values) result = checked_mul(result, value);
  return result;
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  check_value(a >= 0 && b > 0, "ceil_div: expected a >= 0 and b > 0, got ", a, ", ", b);
  return a / b + (a % b != 0);
}

}  // namespace torchtitan::base
