// The standard normal distribution and its inverse in double precision.
#pragma once

namespace torchtitan::base {

// P(X <= x) of a standard normal X, with full relative accuracy in the lower tail.
double normal_cdf(double x);

// The x with normal_cdf(x) == probability, for 0 < probability < 1; -inf at 0, inf at
// 1, NaN elsewhere. Relative error about 1e-16. erfinv(y) = normal_quantile((y + 1) /
// 2) / sqrt(2). Source: Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37
// (1988).
double normal_quantile(double probability);

}  // namespace torchtitan::base
