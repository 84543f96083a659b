#include "ops/simd/table.h"

namespace torchtitan::ops::simd {
namespace {

struct Isa {
  static constexpr const char* name = "baseline";
  static constexpr int64_t bytes = 16;  // of a vector register
};

}  // namespace

const Kernels<float>& baseline_float() { return kTable<Isa, float>; }
const Kernels<double>& baseline_double() { return kTable<Isa, double>; }

}  // namespace torchtitan::ops::simd
