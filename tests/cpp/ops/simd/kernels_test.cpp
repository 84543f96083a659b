// Every instruction set of this machine gives the numbers of plain loops in double.
#include "ops/simd/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

namespace torchtitan::ops::simd {
namespace {

template <class T>
std::vector<T> numbers(int64_t count, double seed) {
  std::vector<T> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] =
        static_cast<T>(2 * std::sin(seed + 12.9898 * static_cast<double>(i * i % 977)));
  }
  return values;
}

template <class T>
class KernelsTest : public ::testing::Test {
 protected:
  // bfloat16 rounds by up to 2^-9, and some results read others that were rounded.
  static constexpr double kTolerance = sizeof(T) == 8   ? 1e-12
                                       : sizeof(T) == 4 ? 2e-5
                                                        : 1e-2;

  template <class Number>
  static void expect_close(const std::vector<Number>& found,
                           const std::vector<double>& expected,
                           double tolerance = kTolerance) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], tolerance * (1 + std::abs(expected[i]))) << i;
    }
  }
};

using Types = ::testing::Types<float, double, BFloat16>;
TYPED_TEST_SUITE(KernelsTest, Types);

// Positions 0 .. tokens - 1 of queries and of keys.
struct InOrder {
  std::vector<int32_t> first, last, key;

  explicit InOrder(int64_t tokens) {
    const auto padded = static_cast<size_t>((tokens + kKeys - 1) / kKeys * kKeys);
    first.assign(padded, 0);
    last.assign(padded, -1);
    key.assign(padded, std::numeric_limits<int32_t>::max());
    for (int64_t t = 0; t < tokens; ++t) {
      last[static_cast<size_t>(t)] = key[static_cast<size_t>(t)] =
          static_cast<int32_t>(t);
    }
  }
  AttentionBounds bounds() const { return {first.data(), last.data(), key.data()}; }
};

template <class T>
struct Heads {
  AttentionShape shape;
  int64_t heads;
  std::vector<T> q, k, v, d_o;
  std::vector<double> o, lse, dq, dk, dv;

  Heads(int64_t tokens, int64_t dim, int64_t count)
      : shape{tokens,      tokens, dim,
              count * dim, dim,    1 / std::sqrt(static_cast<double>(dim))},
        heads(count), q(numbers<T>(tokens * count * dim, 1)),
        k(numbers<T>(tokens * dim, 2)), v(numbers<T>(tokens * dim, 3)),
        d_o(numbers<T>(tokens * count * dim, 4)), o(q.size()),
        lse(static_cast<size_t>(tokens * count)), dq(q.size()), dk(k.size()),
        dv(k.size()) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < tokens; ++i) add_query(h, i);
    }
  }

  void add_query(int64_t h, int64_t i) {
    const int64_t dim = shape.head_dim;
    const auto row = static_cast<size_t>(i * shape.query_stride + h * dim);
    std::vector<double> p;
    double total = 0;
    for (int64_t j = 0; j <= i; ++j) {
      double score = 0;
      for (int64_t d = 0; d < dim; ++d) {
        score += static_cast<double>(q[row + d]) * static_cast<double>(k[j * dim + d]);
      }
      p.push_back(std::exp(score * shape.scale));
      total += p.back();
    }
    lse[static_cast<size_t>(h * shape.queries + i)] = std::log(total);
    double delta = 0;
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t j = 0; j <= i; ++j) o[row + d] += p[j] / total * v[j * dim + d];
      delta += o[row + d] * d_o[row + d];
    }
    for (int64_t j = 0; j <= i; ++j) {
      const double weight = p[j] / total;
      double dp = 0;
      for (int64_t d = 0; d < dim; ++d) {
        dp += static_cast<double>(d_o[row + d]) * static_cast<double>(v[j * dim + d]);
      }
      const double ds = weight * (dp - delta) * shape.scale;
      for (int64_t d = 0; d < dim; ++d) {
        dv[j * dim + d] += weight * d_o[row + d];
        dq[row + d] += ds * k[j * dim + d];
        dk[j * dim + d] += ds * q[row + d];
      }
    }
  }
};

TYPED_TEST(KernelsTest, AttentionAndItsGradientsEqualTheDefinition) {
  using T = TypeParam;
  const int64_t cases[][3] = {
      {1, 8, 2}, {70, 16, 2}, {64, 64, 1}, {130, 6, 3}, {33, 20, 1}};
  for (const auto* kernels : supported<T>()) {
    for (const auto& [tokens, dim, heads] : cases) {
      SCOPED_TRACE(std::string(kernels->name) + " tokens " + std::to_string(tokens));
      const Heads<T> c(tokens, dim, heads);
      const InOrder order(tokens);
      std::vector<T> o(c.o.size()), dk(c.dk.size()), dv(c.dv.size());
      std::vector<Wide<T>> lse(c.lse.size());
      std::vector<Wide<T>> scratch(
          static_cast<size_t>(kernels->attention_scratch(c.shape)));
      for (int64_t h = 0; h < heads; ++h) {
        kernels->attention(c.shape, order.bounds(), &c.q[h * dim], c.k.data(),
                           c.v.data(), nullptr, false, &o[h * dim], &lse[h * tokens],
                           scratch.data());
      }
      this->expect_close(o, c.o);
      this->expect_close(lse, c.lse);
      scratch.assign(static_cast<size_t>(kernels->attention_backward_scratch(c.shape)),
                     std::numeric_limits<Wide<T>>::quiet_NaN());
      auto dq = c.d_o;  // may share its memory
      std::vector<Wide<T>> delta(lse.size());
      for (int64_t h = 0; h < heads; ++h) {
        kernels->attention_delta(c.shape, &o[h * dim], &dq[h * dim],
                                 &delta[h * tokens]);
      }
      kernels->attention_backward(c.shape, order.bounds(), heads, c.q.data(),
                                  c.k.data(), c.v.data(), lse.data(), delta.data(),
                                  dq.data(), {dq.data(), dk.data(), dv.data()}, {},
                                  scratch.data());
      this->expect_close(dq, c.dq, 4 * this->kTolerance);  // they sum over rounded o
      this->expect_close(dk, c.dk, 4 * this->kTolerance);
      this->expect_close(dv, c.dv);
    }
  }
}

TYPED_TEST(KernelsTest, ANotANumberInAQueryReachesItsOutputAndNoOther) {
  using T = TypeParam;
  for (const auto* kernels : supported<T>()) {
    Heads<T> c(3, 4, 1);
    c.q[5] = std::numeric_limits<Wide<T>>::quiet_NaN();  // of token 1
    std::vector<T> o(c.o.size());
    std::vector<Wide<T>> lse(3);
    std::vector<Wide<T>> scratch(
        static_cast<size_t>(kernels->attention_scratch(c.shape)));
    const InOrder order(3);
    kernels->attention(c.shape, order.bounds(), c.q.data(), c.k.data(), c.v.data(),
                       nullptr, false, o.data(), lse.data(), scratch.data());
    EXPECT_TRUE(std::isnan(o[4])) << kernels->name;
    EXPECT_FALSE(std::isnan(o[0]) || std::isnan(o[8])) << kernels->name;
  }
}

TYPED_TEST(KernelsTest, SwigluAndItsGradientsEqualTheDefinition) {
  using T = TypeParam;
  const int64_t count = 37;  // no multiple of any vector
  for (const auto* kernels : supported<T>()) {
    SCOPED_TRACE(kernels->name);
    auto gate = numbers<T>(count, 1), up = numbers<T>(count, 2),
         d = numbers<T>(count, 3);
    gate[0] = -100;
    gate[1] = 100;
    std::vector<double> out, dgate, dup;
    for (int64_t i = 0; i < count; ++i) {
      const double g = gate[i], u = up[i], sigmoid = 1 / (1 + std::exp(-g));
      out.push_back(g * sigmoid * u);
      dup.push_back(d[i] * g * sigmoid);
      dgate.push_back(d[i] * u * sigmoid * (1 + g * (1 - sigmoid)));
    }
    std::vector<T> found(count);
    kernels->swiglu(gate.data(), up.data(), found.data(), count);
    this->expect_close(found, out);
    kernels->swiglu_backward(d.data(), gate.data(), up.data(), count);
    this->expect_close(d, out);
    this->expect_close(gate, dgate);
    this->expect_close(up, dup);
  }
}

TYPED_TEST(KernelsTest, CrossEntropyAndItsGradientEqualTheDefinition) {
  using T = TypeParam;
  const int64_t classes = 257;
  const std::vector<int64_t> labels = {3, -100, 256, 0};
  for (const auto* kernels : supported<T>()) {
    SCOPED_TRACE(kernels->name);
    auto logits = numbers<T>(4 * classes, 5);
    for (auto& logit : logits) logit = logit * 20;
    double loss = 0;
    std::vector<double> gradient(logits.size());
    for (size_t r = 0; r < labels.size(); ++r) {
      if (labels[r] < 0) continue;
      double total = 0;
      for (int64_t i = 0; i < classes; ++i)
        total += std::exp(double{logits[r * classes + i]});
      for (int64_t i = 0; i < classes; ++i) {
        gradient[r * classes + i] = std::exp(double{logits[r * classes + i]}) / total;
      }
      gradient[r * classes + labels[r]] -= 1;
      loss += std::log(total) - logits[r * classes + labels[r]];
    }
    auto copy = logits;
    EXPECT_NEAR(
        kernels->cross_entropy(copy.data(), labels.data(), -100, 4, classes, false),
        loss, this->kTolerance * loss);
    EXPECT_NEAR(
        kernels->cross_entropy(logits.data(), labels.data(), -100, 4, classes, true),
        loss, this->kTolerance * loss);
    this->expect_close(logits, gradient);
  }
}

TYPED_TEST(KernelsTest, AllInstructionSetsAgreeOnNormAndRotation) {
  using T = TypeParam;
  const int64_t rows = 5, dim = 44;
  const auto weight = numbers<T>(dim, 2), dy = numbers<T>(rows * dim, 3);
  for (const auto* kernels : supported<T>()) {
    SCOPED_TRACE(kernels->name);
    auto x = numbers<T>(rows * dim, 1);
    const auto before = x;
    std::vector<T> y(x.size()), again(x.size()), dx(x.size());
    std::vector<Wide<T>> rstd(rows), dweight(dim);
    kernels->rms_norm(x.data(), dy.data(), weight.data(), y.data(), rstd.data(), rows,
                      dim, 1e-5);
    kernels->rms_norm_again(x.data(), weight.data(), rstd.data(), again.data(), rows,
                            dim);
    kernels->rms_norm_backward(dy.data(), Wide<T>(0.75), x.data(), weight.data(),
                               rstd.data(), y.data(), dx.data(), dweight.data(), rows,
                               dim);
    std::vector<double> sum, normed, expected_dx, expected_dweight(dim);
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0, products = 0;
      for (int64_t i = r * dim; i < (r + 1) * dim; ++i) {
        sum.push_back(double{before[i]} + double{dy[i]});
        squares += sum[i] * sum[i];
      }
      const double s = 1 / std::sqrt(squares / dim + 1e-5);
      for (int64_t i = 0; i < dim; ++i) {
        const double unit = sum[r * dim + i] * s;
        normed.push_back(unit * weight[i]);
        products += unit * weight[i] * 0.75 * dy[r * dim + i] / dim;
        expected_dweight[i] += unit * 0.75 * dy[r * dim + i];
      }
      for (int64_t i = 0; i < dim; ++i) {
        expected_dx.push_back(
            s * (0.75 * weight[i] * dy[r * dim + i] - sum[r * dim + i] * s * products) +
            normed[r * dim + i]);
      }
    }
    this->expect_close(x, sum);
    this->expect_close(y, normed);
    this->expect_close(again, normed);
    this->expect_close(dx, expected_dx);
    this->expect_close(dweight, expected_dweight);

    // 11 pairs a head, 2 heads; rows 3 and 4 are tokens 0 and 1 of the next
    // sequence.
    const auto cos = numbers<Wide<T>>(3 * 11, 6), sin = numbers<Wide<T>>(3 * 11, 7);
    auto turned = before;
    const int64_t positions[] = {2, 0, 1};
    kernels->rope(turned.data(), cos.data(), sin.data(), Wide<T>(-1), positions, 0,
                  rows, 3, 2, 22);
    std::vector<double> expected;
    for (int64_t i = 0; i < rows * dim; i += 2) {
      const int64_t angle = positions[i / dim % 3] * 11 + i % 22 / 2;
      const double even = before[i], odd = before[i + 1], c = cos[angle],
                   n = -sin[angle];
      expected.push_back(even * c - odd * n);
      expected.push_back(even * n + odd * c);
    }
    this->expect_close(turned, expected);
  }
}

TEST(BFloat16, SumsAreRoundedOnceToTheNearestAndTiesToEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float cases[][3] = {{1, 0x1p-8F, 1},                      // tie, down
                            {1 + 0x1p-7F, 0x1p-8F, 1 + 0x1p-6F},  // tie, up
                            {1, 0x1.1p-8F, 1 + 0x1p-7F},
                            {-1, -0x1.1p-8F, -1 - 0x1p-7F},
                            {0x1.FEp127F, 0x1.FEp119F, kInfinity},
                            {-kInfinity, 1, -kInfinity},
                            {kInfinity, -kInfinity, std::nanf("")}};
  const int64_t dim = 67;  // whole vectors of every set, and a rest
  const std::vector<BFloat16> weight(dim, 1.0F);
  for (const auto* kernels : supported<BFloat16>()) {
    for (const auto& [a, b, expected] : cases) {
      std::vector<BFloat16> x(dim, a), y(dim);
      const std::vector<BFloat16> residual(dim, b);
      float rstd = 0;
      kernels->rms_norm(x.data(), residual.data(), weight.data(), y.data(), &rstd, 1,
                        dim, 1e-5);
      for (const float found : x) {
        EXPECT_TRUE(found == expected || (std::isnan(found) && std::isnan(expected)))
            << kernels->name << ": " << a << " + " << b << " gives " << found;
      }
    }
  }
}

}  // namespace
}  // namespace torchtitan::ops::simd
