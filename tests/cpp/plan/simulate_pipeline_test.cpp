#include "plan/simulate_pipeline.h"

#include <gtest/gtest.h>

namespace torchtitan::plan {
namespace {

using K = ActionKind;

Action on(K kind, int64_t stage, int64_t microbatch) {
  return {.kind = kind, .stage = stage, .microbatch = microbatch};
}

Action wait(K kind, int64_t stage, int64_t microbatch) {
  return wait_for(on(kind, stage, microbatch));
}

constexpr StageCost kCost{.forward_seconds = 1.0,
                          .backward_seconds = 3.0,
                          .backward_input_seconds = 2.0,
                          .backward_weight_seconds = 1.5,
                          .output_bytes = 8.0};

TEST(SimulatePipeline, ARankComputesOneAfterTheOther) {
  const std::vector<Program> programs{
      {on(K::kForward, 0, 0), on(K::kForward, 0, 1), on(K::kBackward, 0, 0),
       on(K::kBackwardInput, 0, 1), on(K::kBackwardWeight, 0, 1)}};
  const std::vector<StageCost> stages{kCost};
  const PipelineSimulation simulation =
      simulate_pipeline(programs, stages, std::nullopt);
  EXPECT_DOUBLE_EQ(simulation.seconds, 8.5);
  EXPECT_DOUBLE_EQ(simulation.spans[0][3].begin, 5.0);
  EXPECT_DOUBLE_EQ(simulation.spans[0][3].end, 7.0);
  EXPECT_DOUBLE_EQ(simulation.bubble(), 0.0);
  EXPECT_EQ(simulation.ranks[0].peak_live, 2);
}

std::vector<Program> two_messages() {
  return {{on(K::kForward, 0, 0), on(K::kSendActivation, 0, 0), on(K::kForward, 0, 1),
           on(K::kSendActivation, 0, 1), wait(K::kSendActivation, 0, 0),
           wait(K::kSendActivation, 0, 1)},
          {on(K::kReceiveActivation, 1, 0), on(K::kReceiveActivation, 1, 1),
           wait(K::kReceiveActivation, 1, 0), on(K::kForward, 1, 0),
           wait(K::kReceiveActivation, 1, 1), on(K::kForward, 1, 1)}};
}

TEST(SimulatePipeline, FreeMessagesPassWhenBothEndsHaveStarted) {
  std::vector<Program> programs = two_messages();
  const std::vector<StageCost> stages{kCost, kCost};
  const PipelineSimulation simulation =
      simulate_pipeline(programs, stages, std::nullopt);
  EXPECT_DOUBLE_EQ(simulation.seconds, 3.0);
  EXPECT_DOUBLE_EQ(simulation.bubble(), 2.0 / 6.0);
  EXPECT_DOUBLE_EQ(simulation.bubble(0), 1.0 / 3.0);
  EXPECT_DOUBLE_EQ(simulation.ranks[1].first_begin, 1.0);
  EXPECT_DOUBLE_EQ(simulation.ranks[1].last_end, 3.0);
  EXPECT_DOUBLE_EQ(simulation.ranks[1].idle_share(), 0.0);
  // The second receive starts only after the first forward: rank 0 waits for it.
  std::swap(programs[1][1], programs[1][2]);
  std::swap(programs[1][2], programs[1][3]);
  const PipelineSimulation late = simulate_pipeline(programs, stages, std::nullopt);
  EXPECT_DOUBLE_EQ(late.spans[0][3].begin, 2.0);
  EXPECT_DOUBLE_EQ(late.spans[0][5].end, 2.0);
}

TEST(SimulatePipeline, MessagesOfAChannelQueueAtItsRate) {
  const std::vector<StageCost> stages{kCost, kCost};
  const PipelineSimulation simulation = simulate_pipeline(
      two_messages(), stages, Link{.bytes_per_second = 4.0, .latency_seconds = 0.5});
  EXPECT_DOUBLE_EQ(simulation.spans[0][1].begin, 1.0);
  EXPECT_DOUBLE_EQ(simulation.spans[0][1].end, 3.5);
  EXPECT_DOUBLE_EQ(simulation.spans[1][1].begin, 3.5);  // not 2.0
  EXPECT_DOUBLE_EQ(simulation.spans[1][1].end, 6.0);
  EXPECT_DOUBLE_EQ(simulation.spans[1][4].begin, 4.5);  // waits
  EXPECT_DOUBLE_EQ(simulation.spans[1][4].end, 6.0);
  EXPECT_DOUBLE_EQ(simulation.seconds, 7.0);
}

TEST(SimulatePipeline, RefusesWhatHasNoTime) {
  const std::vector<StageCost> stages{kCost, kCost};
  const auto error = [&](const std::vector<Program>& programs,
                         const std::vector<StageCost>& costs,
                         const std::optional<Link>& link) -> std::string {
    try {
      simulate_pipeline(programs, costs, link);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  StageCost negative = kCost;
  negative.forward_seconds = -1.0;
  EXPECT_EQ(error({}, {negative}, std::nullopt),
            "simulate_pipeline: a stage has a negative time or size: -1");
  EXPECT_EQ(error({}, {kCost}, Link{0.0, 0.0}),
            "simulate_pipeline: a link needs a positive rate and no negative latency");
  EXPECT_EQ(error({{on(K::kForward, 2, 0)}}, stages, std::nullopt),
            "simulate_pipeline: Forward st2 mb0 is of none of the 2 stages");
  EXPECT_EQ(error({{{.kind = K::kClipGradient, .stage = 0}}}, stages, std::nullopt),
            "simulate_pipeline: ClipGradient st0 is no action of a stage");
  std::vector<Program> programs = two_messages();
  std::swap(programs[0][0], programs[0][5]);
  EXPECT_EQ(error(programs, stages, std::nullopt),
            "simulate_pipeline: rank 0 waits for ever in action 0");
  EXPECT_EQ(error({{on(K::kSendActivation, 0, 0)}, {}}, stages, std::nullopt),
            "simulate_pipeline: rank 0: nobody receives SendActivation st0 mb0");
  EXPECT_EQ(error({{}, programs[1]}, stages, std::nullopt),
            "simulate_pipeline: rank 1 waits for ever for ReceiveActivation st1 mb0, "
            "which nobody sends");
}

}  // namespace
}  // namespace torchtitan::plan
