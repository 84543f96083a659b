#include "plan/step_shape.h"

#include <gtest/gtest.h>

#include <functional>

#include "plan/shapes.h"

namespace torchtitan::plan {
namespace {

std::string refusal(const std::function<void(StepShape&)>& spoil) {
  StepShape shape = chain(2, 2, 1, 1);
  spoil(shape);
  try {
    check(shape);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(StepShape, RefusesWhatNoStepCanHave) {
  EXPECT_EQ(refusal([](StepShape&) {}), "accepted");
  EXPECT_EQ(refusal([](StepShape& s) { s.segments.clear(); }),
            "step shape: a model has at least one segment");
  EXPECT_EQ(refusal([](StepShape& s) { s.num_microbatches = 0; }),
            "step shape: a step has at least one microbatch, got 0");
  EXPECT_EQ(refusal([](StepShape& s) { s.segments[1].groups = {2}; }),
            "step shape: segment 'segment1' uses group 2 of 2");
  EXPECT_EQ(refusal([](StepShape& s) { s.segments[1].groups = {1, 1}; }),
            "step shape: segment 'segment1' names group 1 twice");
  EXPECT_EQ(refusal([](StepShape& s) { s.groups[0].shards = 0; }),
            "step shape: group 'group0' has 0 shards and 1 replicas; both must be at "
            "least 1");
  EXPECT_EQ(refusal([](StepShape& s) { s.groups[1].optimizer_bytes = -1; }),
            "step shape: group 'group1' has a negative size");
  EXPECT_EQ(refusal([](StepShape& s) { s.groups[1].transport_numel = -1; }),
            "step shape: group 'group1' has a negative size");
  EXPECT_EQ(refusal([](StepShape& s) { s.segments[0].saved_bytes = -1; }),
            "step shape: segment 'segment0' has a negative size");
  EXPECT_EQ(refusal([](StepShape& s) { s.constant_bytes = -1; }),
            "step shape: constant_bytes is negative");
}

TEST(StepShape, TakesTheBytesOfAnotherOptimizer) {
  const StepShape shape = with_optimizer_bytes(chain(2, 2, 1, 1), 3);
  EXPECT_EQ(shape.groups[0].optimizer_bytes, 3);
  EXPECT_EQ(shape.groups[1].optimizer_bytes, 3);
}

}  // namespace
}  // namespace torchtitan::plan
