#include "ops/simd/table.h"

namespace torchtitan::ops::simd {
namespace {

struct Isa {
  static constexpr const char* name = "avx512";
  static constexpr int64_t bytes = 64;  // of a vector register
};

}  // namespace

const Kernels<float>& avx512_float() { return kTable<Isa, float>; }
const Kernels<double>& avx512_double() { return kTable<Isa, double>; }

}  // namespace torchtitan::ops::simd
