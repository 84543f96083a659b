#include "ops/simd/table.h"

namespace torchtitan::ops::simd {
namespace {

struct Isa {
  static constexpr const char* name = "avx2";
  static constexpr int64_t bytes = 32;  // of a vector register
};

}  // namespace

template <class T>
const Kernels<T>& avx2() {
  return kTable<Isa, T>;
}

template const Kernels<float>& avx2();
template const Kernels<double>& avx2();
template const Kernels<BFloat16>& avx2();

}  // namespace torchtitan::ops::simd
