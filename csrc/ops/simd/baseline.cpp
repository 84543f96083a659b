#include "ops/simd/table.h"

namespace torchtitan::ops::simd {
namespace {

struct Isa {
  static constexpr const char* name = "baseline";
  static constexpr int64_t bytes = 16;  // of a vector register
};

}  // namespace

template <class T>
const Kernels<T>& baseline() {
  return kTable<Isa, T>;
}

template const Kernels<float>& baseline();
template const Kernels<double>& baseline();
template const Kernels<BFloat16>& baseline();

}  // namespace torchtitan::ops::simd
