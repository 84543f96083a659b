#include "ops/linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "ops/simd/kernels.h"

// Exported by torch's CPU library, declared in none of its headers; null where it is
// missing. c = beta * c + alpha * a b, in place. Leaves c as it is when the inner
// dimension is 0.
namespace at::native {
[[gnu::weak]] void mkldnn_matmul(const Tensor& a, const Tensor& b, const Tensor& c,
                                 float beta, float alpha);
}

namespace torchtitan::ops {
namespace {

// Below this many multiplications the call itself (12 us) costs more than it saves.
constexpr int64_t kWorthOneDnn = int64_t{1} << 22;

// Not every CPU is served: without AVX-512 it throws for any dtype.
bool one_dnn_works() {
  static const bool works = [] {
    if (at::native::mkldnn_matmul == nullptr) return false;
    const auto one = at::ones({1, 1}, at::kFloat);
    try {
      at::native::mkldnn_matmul(one, one, at::empty({1, 1}, at::kFloat), 0.0F, 1.0F);
    } catch (const c10::Error&) {
      return false;
    }
    return true;
  }();
  return works;
}

bool is_large_float_product(const at::Tensor& a, const at::Tensor& b,
                            const at::Tensor& c) {
  return a.is_cpu() && a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat &&
         c.scalar_type() == at::kFloat &&
         a.size(0) * a.size(1) * b.size(1) >= kWorthOneDnn;
}

void product_(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b,
              Into into) {
  // Torch's own products on meta may allocate what the real ones do not.
  if (c.is_meta()) return;
  if (is_large_float_product(a, b, c) && one_dnn_works()) {
    at::native::mkldnn_matmul(a, b, c, into == Into::kAdd ? 1.0F : 0.0F, 1.0F);
  } else if (into == Into::kAdd) {
    at::Tensor(c).addmm_(a, b);
  } else {
    at::Tensor out = c;
    at::mm_out(out, a, b);
  }
}

// Rows of activations that are float32 at once: enough for products at full speed.
constexpr int64_t kPanel = 2048;

// Products in bfloat16 are many times slower than those in float32 on a CPU without
// instructions for them.
bool goes_through_float(const at::Tensor& x) {
  static const bool is_native = simd::multiplies_bfloat16();
  return x.scalar_type() == at::kBFloat16 && (x.is_cpu() || x.is_meta()) && !is_native;
}

at::Tensor float_rows(int64_t rows, const at::Tensor& like) {
  return at::empty({rows, like.size(1)}, like.options().dtype(at::kFloat));
}

// Calls run(first, count) for panels of x. On meta the memory is all there is.
template <class Run>
void for_panels(const at::Tensor& x, const Run& run) {
  for (int64_t i = 0; !x.is_meta() && i < x.size(0); i += kPanel) {
    run(i, std::min(kPanel, x.size(0) - i));
  }
}

// c = a b, or c += a b, of bfloat16 a and b.
void product_through_float_(const at::Tensor& c, const at::Tensor& a,
                            const at::Tensor& b, Into into) {
  const int64_t rows = std::min(kPanel, a.size(0));
  const auto a_rows = float_rows(rows, a);
  const auto c_rows = float_rows(rows, c);
  const auto wide_b = b.to(at::kFloat);
  for_panels(a, [&](int64_t first, int64_t count) {
    const auto from = a_rows.narrow(0, 0, count);
    const auto to = c_rows.narrow(0, 0, count);
    const auto result = c.narrow(0, first, count);
    from.copy_(a.narrow(0, first, count));
    if (into == Into::kAdd) to.copy_(result);
    product_(to, from, wide_b, into);
    result.copy_(to);
  });
}

// c += a^T b of bfloat16 a and b, for a float32 c.
void add_transposed_product_through_float_(const at::Tensor& c, const at::Tensor& a,
                                           const at::Tensor& b) {
  const int64_t rows = std::min(kPanel, a.size(0));
  const auto a_rows = float_rows(rows, a);
  const auto b_rows = float_rows(rows, b);
  for_panels(a, [&](int64_t first, int64_t count) {
    const auto left = a_rows.narrow(0, 0, count);
    const auto right = b_rows.narrow(0, 0, count);
    left.copy_(a.narrow(0, first, count));
    right.copy_(b.narrow(0, first, count));
    product_(c, left.t(), right, Into::kAdd);
  });
}

void check(const char* name, const at::Tensor& y, const at::Tensor& x,
           const at::Tensor& w) {
  TORCH_CHECK_VALUE(y.dim() == 2 && x.dim() == 2 && w.dim() == 2 &&
                        y.size(0) == x.size(0) && y.size(1) == w.size(0) &&
                        x.size(1) == w.size(1),
                    name, ": expected y [N, O], x [N, I] and w [O, I], got ", y.sizes(),
                    ", ", x.sizes(), " and ", w.sizes());
}

}  // namespace

void linear_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w, Into into) {
  check("linear_", y, x, w);
  if (goes_through_float(x)) return product_through_float_(y, x, w.t(), into);
  product_(y, x, w.t(), into);
}

void linear_backward_input_(const at::Tensor& dx, const at::Tensor& dy,
                            const at::Tensor& w, Into into) {
  check("linear_backward_input_", dy, dx, w);
  if (goes_through_float(dy)) return product_through_float_(dx, dy, w, into);
  product_(dx, dy, w, into);
}

void linear_backward_weight_(const at::Tensor& dw, const at::Tensor& dy,
                             const at::Tensor& x) {
  check("linear_backward_weight_", dy, x, dw);
  if (goes_through_float(x)) {
    if (dw.scalar_type() == at::kFloat) {
      return add_transposed_product_through_float_(dw, dy, x);
    }
    const auto sum = at::zeros_like(dw, dw.options().dtype(at::kFloat));
    add_transposed_product_through_float_(sum, dy, x);
    dw.add_(sum);
    return;
  }
  if (dw.scalar_type() == x.scalar_type()) return product_(dw, dy.t(), x, Into::kAdd);
  // Cast here: add_ would do it unseen, with memory that it does not take on meta.
  dw.add_(at::mm(dy.t(), x).to(dw.scalar_type()));
}

}  // namespace torchtitan::ops
