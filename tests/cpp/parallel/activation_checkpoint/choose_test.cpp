// What segments keep, by operation and by a budget of bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "nn/own_forward.h"
#include "parallel/activation_checkpoint/memory_budget.h"
#include "parallel/activation_checkpoint/per_operation.h"
#include "parallel/activation_checkpoint/select.h"

namespace torchtitan::parallel::activation_checkpoint {
namespace {

using Kind = nn::Operation::Kind;
using Kept = std::vector<bool>;

// A block of five products, one of them summed over ranks, with attention in between.
class Block final : public nn::AutogradSegment {
 public:
  Block(const std::string& name, int64_t group)
      : AutogradSegment(
            name, {"h"}, {"h"},
            {{group, 0}, {group, 1}, {group, 2}, {group, 3}, {group, 4}, {group, 5}}) {}

  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& /*w*/) const override {
    return inputs;
  }
  nn::Flops flops(const nn::TensorList& /*i*/,
                  const nn::TensorList& /*w*/) const override {
    return {};
  }
  std::vector<nn::Operation> operations(const nn::BatchShape& batch) const override {
    const int64_t tokens = batch.rows * batch.length;
    return {
        {"a", Kind::kProduct, 0, false, 10 * tokens, 100 * tokens},
        {"b", Kind::kProduct, 1, false, 10 * tokens, 300 * tokens},
        {"attention", Kind::kAttention, std::nullopt, false, 20 * tokens, 500 * tokens},
        {"c", Kind::kProduct, 2, true, 40 * tokens, 400 * tokens},
        {"d", Kind::kProduct, 3, false, 30 * tokens, 600 * tokens},
        {"e", Kind::kProduct, 4, false, 30 * tokens, 600 * tokens}};
  }
};

class Outer final : public nn::AutogradSegment {
 public:
  Outer() : AutogradSegment("head", {"h"}, {"loss"}, {}) {}
  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& /*w*/) const override {
    return inputs;
  }
  nn::Flops flops(const nn::TensorList& /*i*/,
                  const nn::TensorList& /*w*/) const override {
    return {};
  }
};

nn::Model model(int64_t blocks) {
  nn::Model result;
  const auto none = nn::Init::constant(0);
  for (int64_t i = 0; i < blocks; ++i) {
    const auto name = "layers." + std::to_string(i);
    result.groups.push_back({name,
                             {{name + ".attention.a.weight", {4, 8}, none},
                              {name + ".attention.b.weight", {2, 8}, none},
                              {name + ".attention.c.weight", {8, 4}, none},
                              {name + ".mlp.d.weight", {6, 8}, none},
                              {name + ".mlp.e.weight", {6, 8}, none},
                              {name + ".norm.weight", {8}, none}}});
    result.segments.push_back(std::make_shared<Block>(name, i));
  }
  result.segments.push_back(std::make_shared<Outer>());
  return result;
}

Kept kept_by(const nn::Segment& segment) {
  Kept kept;
  for (size_t i = 0; i < 6; ++i) kept.push_back(segment.keeps(i));
  return kept;
}

Kept per_operation(const std::vector<std::string>& recomputed) {
  const auto some = model(2);
  const auto choice =
      choose(some, {.mode = Policy::Mode::kPerOperation,
                    .recomputed_modules = recomputed,
                    .batch = {.rows = 1, .length = 1, .dtype = at::kFloat}});
  EXPECT_EQ(choice.recompute, (std::vector<bool>{true, true, false}));
  EXPECT_EQ(kept_by(*some.segments[0]), kept_by(*some.segments[1]));
  return kept_by(*some.segments[1]);
}

TEST(PerOperation, KeepsEverySecondProductAttentionAndSums) {
  // a and d are the first and the third that count; c is the third product and a sum.
  EXPECT_EQ(per_operation({}), (Kept{true, false, true, true, false, true}));
}

TEST(PerOperation, ShapesNamedAreRecomputedAndNotCounted) {
  EXPECT_EQ(per_operation({"attention.a"}),
            (Kept{false, true, true, true, true, false}));
  // e has the shape of d.
  EXPECT_EQ(per_operation({"mlp.d"}), (Kept{true, false, true, true, false, false}));
  // A sum over ranks is kept all the same.
  EXPECT_EQ(per_operation({"layers.0.attention.c", "layers.1.attention.c"}),
            (Kept{true, false, true, true, true, false}));
  EXPECT_EQ(per_operation({"moe.router.gate"}), per_operation({}));
}

TEST(PerOperation, RefusesOtherModules) {
  for (const char* name : {"attention", "norm", "layers.1"}) {
    try {
      per_operation({name});
      FAIL() << name << " was accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find("which is none"), std::string::npos)
          << error.what();
    }
  }
}

Choice with_budget(const nn::Model& some, double budget) {
  return choose(some, {.mode = Policy::Mode::kMemoryBudget,
                       .budget = budget,
                       .batch = {.rows = 2, .length = 4, .dtype = at::kFloat}});
}

TEST(MemoryBudget, ZeroKeepsNothingAndOneEverything) {
  const auto some = model(3);
  const auto nothing = with_budget(some, 0);
  EXPECT_EQ(nothing.recompute, (std::vector<bool>{true, true, true, false}));
  EXPECT_EQ(kept_by(*some.segments[2]), Kept(6, false));
  EXPECT_EQ(nothing.chosen, (Cost{0, 3 * 8 * 2500}));
  const auto everything = with_budget(some, 1);
  EXPECT_EQ(everything.recompute, std::vector<bool>(4, false));
  EXPECT_EQ(everything.chosen, (Cost{3 * 8 * 140, 0}));
  EXPECT_EQ(everything.curve.front(), nothing.chosen);
  EXPECT_EQ(everything.curve.back(), everything.chosen);
}

TEST(MemoryBudget, TakesWhatSavesMostPerByteFirst) {
  const auto some = model(1);
  // 50 bytes a token: b and attention (30, 800), with d or e beyond the budget.
  const auto choice = with_budget(some, 50.0 / 140);
  EXPECT_EQ(choice.chosen, (Cost{8 * 50, 8 * (2500 - 1100)}));
  EXPECT_TRUE(some.segments[0]->keeps(2));
}

TEST(MemoryBudget, RefusesBlocksThatDoNotTellTheirOperations) {
  auto some = model(0);
  some.segments.insert(
      some.segments.begin(),
      std::make_shared<nn::CalledSegment>("layers.0", std::vector<nn::ParameterRef>{}));
  EXPECT_THROW(with_budget(some, 0.5), std::invalid_argument);
  EXPECT_THROW(with_budget(model(1), 1.5), std::invalid_argument);
  EXPECT_THROW(with_budget(model(1), -0.1), std::invalid_argument);
}

// Against every subset of random items.
TEST(MemoryBudget, IsTheBestOfAllSubsets) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Item> items(1 + random() % 9);
    Item all{0, 0};
    for (auto& item : items) {
      item = {static_cast<int64_t>(1 + random() % 40) * 64,
              static_cast<int64_t>(random() % 1000)};
      all.bytes += item.bytes;
      all.flops += item.flops;
    }
    for (const double budget : {0.0, 0.1, 0.33, 0.5, 0.9, 1.0}) {
      const auto packing = pack(items, budget);
      int64_t best = all.flops;
      for (unsigned bits = 0; bits < 1U << items.size(); ++bits) {
        Cost cost{0, all.flops};
        for (size_t i = 0; i < items.size(); ++i) {
          if ((bits >> i & 1U) == 0) continue;
          cost.bytes += items[i].bytes;
          cost.flops -= items[i].flops;
        }
        if (static_cast<double>(cost.bytes) <=
            budget * static_cast<double>(all.bytes)) {
          best = std::min(best, cost.flops);
        }
      }
      EXPECT_EQ(packing.cost.flops, best) << round << " " << budget;
      EXPECT_LE(static_cast<double>(packing.cost.bytes),
                budget * static_cast<double>(all.bytes));
      for (size_t i = 1; i < packing.curve.size(); ++i) {
        EXPECT_GT(packing.curve[i].bytes, packing.curve[i - 1].bytes);
        EXPECT_LT(packing.curve[i].flops, packing.curve[i - 1].flops);
      }
    }
  }
}

TEST(MemoryBudget, SizesWithoutACommonUnitStayWithinTheBudget) {
  std::vector<Item> items;
  for (int64_t i = 0; i < 300; ++i) items.push_back({1'000'003 + 7919 * i, 1 + i % 13});
  const auto packing = pack(items, 0.5);
  int64_t all = 0, kept = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    all += items[i].bytes;
    if (packing.kept[i]) kept += items[i].bytes;
  }
  EXPECT_EQ(packing.cost.bytes, kept);
  EXPECT_LE(2 * kept, all);
  EXPECT_GT(2.05 * static_cast<double>(kept), static_cast<double>(all));
}

}  // namespace
}  // namespace torchtitan::parallel::activation_checkpoint
