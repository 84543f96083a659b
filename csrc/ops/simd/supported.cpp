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

template <class T>
std::vector<const Kernels<T>*> supported() {
  std::vector<const Kernels<T>*> all;
  if (available().avx512) all.push_back(&avx512<T>());
  if (available().avx2) all.push_back(&avx2<T>());
  all.push_back(&baseline<T>());
  return all;
}

template std::vector<const Kernels<float>*> supported();
template std::vector<const Kernels<double>*> supported();
template std::vector<const Kernels<BFloat16>*> supported();

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;  // those with AMX have it too
#else
  return false;
#endif
}

}  // namespace torchtitan::ops::simd
