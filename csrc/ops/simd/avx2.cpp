#include "ops/simd/table.h"

namespace torchtitan::ops::simd {
namespace {

struct Isa {
  static constexpr const char* name = "avx2";
  static constexpr int64_t bytes = 32;  // of a vector register
};

}  // namespace

const Kernels<float>& avx2_float() { return kTable<Isa, float>; }
const Kernels<double>& avx2_double() { return kTable<Isa, double>; }

}  // namespace torchtitan::ops::simd
