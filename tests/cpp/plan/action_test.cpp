#include "plan/action.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace torchtitan::plan {
namespace {

TEST(Action, PrintsItsKindAndWhatItActsOn) {
  EXPECT_EQ(
      to_string(Action{.kind = ActionKind::kForward, .segment = 2, .microbatch = 0}),
      "Forward s2 mb0");
  EXPECT_EQ(to_string(wait_for({.kind = ActionKind::kUnshard, .group = 3})),
            "Wait Unshard g3");
  EXPECT_EQ(to_string(Action{
                .kind = ActionKind::kSendActivation, .stage = 1, .microbatch = 4}),
            "SendActivation st1 mb4");
  EXPECT_EQ(to_string(Action{.kind = ActionKind::kForward,
                             .stage = 1,
                             .microbatch = 4,
                             .overlaps_next = true}),
            "Forward st1 mb4 with the next");
  EXPECT_EQ(to_string(Action{.kind = ActionKind::kOptimizerStep}), "OptimizerStep");
}

TEST(Action, EveryKindHasItsOwnName) {
  const std::vector<std::pair<ActionKind, std::string>> names{
      {ActionKind::kCountTokens, "CountTokens"},
      {ActionKind::kUnshard, "Unshard"},
      {ActionKind::kReshard, "Reshard"},
      {ActionKind::kForward, "Forward"},
      {ActionKind::kRecompute, "Recompute"},
      {ActionKind::kBackward, "Backward"},
      {ActionKind::kBackwardInput, "BackwardInput"},
      {ActionKind::kBackwardWeight, "BackwardWeight"},
      {ActionKind::kReduceGradient, "ReduceGradient"},
      {ActionKind::kAllReduceGradient, "AllReduceGradient"},
      {ActionKind::kSumCopies, "SumCopies"},
      {ActionKind::kSendActivation, "SendActivation"},
      {ActionKind::kReceiveActivation, "ReceiveActivation"},
      {ActionKind::kSendGradient, "SendGradient"},
      {ActionKind::kReceiveGradient, "ReceiveGradient"},
      {ActionKind::kWait, "Wait"},
      {ActionKind::kClipGradient, "ClipGradient"},
      {ActionKind::kOptimizerStep, "OptimizerStep"},
  };
  for (const auto& [kind, name] : names) EXPECT_EQ(to_string(kind), name);
}

TEST(Action, CommunicationsAreStartsAndSegmentsCompute) {
  for (const ActionKind kind :
       {ActionKind::kCountTokens, ActionKind::kUnshard, ActionKind::kReduceGradient,
        ActionKind::kAllReduceGradient, ActionKind::kSumCopies,
        ActionKind::kSendActivation, ActionKind::kReceiveActivation,
        ActionKind::kSendGradient, ActionKind::kReceiveGradient}) {
    EXPECT_TRUE(is_start({.kind = kind}));
    EXPECT_FALSE(is_compute({.kind = kind}));
    EXPECT_FALSE(is_start(wait_for({.kind = kind})));
  }
  for (const ActionKind kind :
       {ActionKind::kForward, ActionKind::kRecompute, ActionKind::kBackward,
        ActionKind::kBackwardInput, ActionKind::kBackwardWeight}) {
    EXPECT_TRUE(is_compute({.kind = kind}));
    EXPECT_FALSE(is_start({.kind = kind}));
  }
  EXPECT_FALSE(is_start({.kind = ActionKind::kReshard}));
  EXPECT_FALSE(is_compute({.kind = ActionKind::kOptimizerStep}));
}

}  // namespace
}  // namespace torchtitan::plan
