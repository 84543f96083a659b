#include "plan/traffic.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace torchtitan::plan {
namespace {

using K = ActionKind;

TEST(Traffic, BytesAreThoseOfTheLargerSide) {
  // 8 elements a shard, 4 shards, 2 bytes gathered, 4 bytes reduced.
  const StepShape shape = chain(1, 4, 2, 1);
  EXPECT_EQ(collective_of({.kind = K::kUnshard, .group = 0}, shape),
            std::pair(Channel("fsdp", "all_gather"), int64_t{4 * 8 * 2}));
  EXPECT_EQ(collective_of({.kind = K::kReduceGradient, .group = 0}, shape),
            std::pair(Channel("fsdp", "reduce_scatter"), int64_t{4 * 8 * 4}));
  EXPECT_EQ(collective_of({.kind = K::kAllReduceGradient, .group = 0}, shape),
            std::pair(Channel("dp_replicate", "all_reduce"), int64_t{8 * 4}));
  EXPECT_THROW(collective_of({.kind = K::kReshard, .group = 0}, shape),
               std::invalid_argument);
}

TEST(Traffic, AddsUpCallsAndBytesByAxisAndVerb) {
  StepShape shape = chain(2, 4, 2, 1);
  shape.groups[1].shard_axis = "efsdp";
  const Program program{{.kind = K::kCountTokens},
                        {.kind = K::kUnshard, .group = 0},
                        {.kind = K::kUnshard, .group = 1},
                        {.kind = K::kUnshard, .group = 0},
                        {.kind = K::kReduceGradient, .group = 1},
                        {.kind = K::kAllReduceGradient, .group = 1},
                        {.kind = K::kClipGradient},
                        {.kind = K::kOptimizerStep}};
  const std::map<Channel, Traffic> expected{
      {{"fsdp", "all_gather"}, {2, 128}},
      {{"efsdp", "all_gather"}, {1, 64}},
      {{"efsdp", "reduce_scatter"}, {1, 128}},
      {{"dp_replicate", "all_reduce"}, {1, 32}},
      {{"loss", "all_reduce"}, {2, 16}},
      {{"fsdp", "all_reduce"}, {1, 8}},
      {{"efsdp", "all_reduce"}, {1, 8}},
  };
  EXPECT_EQ(traffic(program, shape, 8), expected);
}

TEST(Traffic, EarlyStepsSendANormForEachGroup) {
  const StepShape shape = chain(2, 2, 1, 1);
  const Program program{{.kind = K::kOptimizerStep, .group = 1},
                        {.kind = K::kOptimizerStep, .group = 0}};
  const std::map<Channel, Traffic> expected{{{"fsdp", "all_reduce"}, {2, 16}}};
  EXPECT_EQ(traffic(program, shape, 2), expected);
}

TEST(Traffic, OneRankSendsNothing) {
  const Program program{{.kind = K::kCountTokens},
                        {.kind = K::kClipGradient},
                        {.kind = K::kOptimizerStep, .group = 0}};
  EXPECT_TRUE(traffic(program, chain(1, 1, 1, 1), 1).empty());
}

}  // namespace
}  // namespace torchtitan::plan
