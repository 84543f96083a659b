#include "ops/simd/kernels.h"

namespace torchtitan::ops::simd {
namespace {

struct Available {
  bool avx2 = false;
  bool avx512 = false;
};

Available available() {
#if defined(__x86_64__)
  const bool fma = __builtin_cpu_supports("fma");
  return {.avx2 = fma && __builtin_cpu_supports("avx2"),
          .avx512 = fma && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl")};
#else
  return {};
#endif
}

}  // namespace

template <>
std::vector<const Kernels<float>*> supported<float>() {
  std::vector<const Kernels<float>*> all;
  if (available().avx512) all.push_back(&avx512_float());
  if (available().avx2) all.push_back(&avx2_float());
  all.push_back(&baseline_float());
  return all;
}

template <>
std::vector<const Kernels<double>*> supported<double>() {
  std::vector<const Kernels<double>*> all;
  if (available().avx512) all.push_back(&avx512_double());
  if (available().avx2) all.push_back(&avx2_double());
  all.push_back(&baseline_double());
  return all;
}

}  // namespace torchtitan::ops::simd
