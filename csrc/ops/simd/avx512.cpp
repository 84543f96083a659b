#include "ops/simd/table.h"

namespace torchtitan::ops::simd {
namespace {

struct Isa {
  static constexpr const char* name = "avx512";
  static constexpr int64_t bytes = 64;  // of a vector register
};

}  // namespace

template <class T>
const Kernels<T>& avx512() {
  return kTable<Isa, T>;
}

template const Kernels<float>& avx512();
template const Kernels<double>& avx512();
template const Kernels<BFloat16>& avx512();

}  // namespace torchtitan::ops::simd
