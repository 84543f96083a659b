#include "plan/timeline.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace torchtitan::plan {
namespace {

using K = ActionKind;

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

Action on(K kind, int64_t stage, int64_t microbatch) {
  return {.kind = kind, .stage = stage, .microbatch = microbatch};
}

const std::vector<Program> kPrograms{
    {on(K::kForward, 0, 7), on(K::kSendActivation, 0, 7),
     wait_for(on(K::kSendActivation, 0, 7)), on(K::kBackward, 0, 7)},
    {on(K::kForward, 1, 7)}};
const std::vector<std::vector<Span>> kSpans{
    {{0.0, 1.0}, {1.0, 1.5}, {1.0, 1.5}, {2.0, 4.0}}, {{1.5, 2.5}}};

TEST(Timeline, DrawsABarForEachWorkWithItsMicrobatch) {
  const std::string svg = draw_timeline(kPrograms, kSpans, "a & b");
  EXPECT_EQ(count(svg, "<title>"), 4);  // three works, one message
  EXPECT_EQ(count(svg, ">7</text>"), 3);
  EXPECT_EQ(count(svg, "<title>Forward st0 mb7: 0 to 1 s</title>"), 1);
  EXPECT_EQ(count(svg, "<title>SendActivation st0 mb7: 1 to 1.5 s</title>"), 1);
  EXPECT_EQ(count(svg, "Wait"), 0);
  EXPECT_EQ(count(svg, ">a &amp; b</text>"), 1);
  EXPECT_EQ(count(svg, ">rank 1: st1</text>"), 1);
  EXPECT_EQ(count(svg, ">forward</text>"), 1);  // in the legend
  EXPECT_EQ(count(svg, ">optimizer</text>"), 0);
}

TEST(Timeline, TellsTheIdleShareAndTheLiveActivations) {
  const std::string svg = draw_timeline(kPrograms, kSpans, "");
  EXPECT_EQ(count(svg, ">bubble 50.0 %, at most 1 live activations on a rank, 4 s<"),
            1);
}

TEST(Timeline, WaitingForOthersInTheClipIsIdle) {
  const std::vector<Program> programs{
      {{.kind = K::kForward}, {.kind = K::kClipGradient}, {.kind = K::kOptimizerStep}}};
  const std::vector<std::vector<Span>> spans{{{0.0, 1.0}, {1.0, 3.0}, {3.0, 4.0}}};
  EXPECT_DOUBLE_EQ(idle_share(programs, spans), 0.5);
  EXPECT_DOUBLE_EQ(idle_share(kPrograms, kSpans), 0.5);
}

TEST(Timeline, ActionsOfSegmentsGetTheStagesOfTheRank) {
  StepShape shape = chain(3, 1, 1, 1);
  const auto stage = [](int64_t index, int64_t first_segment, int64_t num_segments) {
    return StageShape{.index = index,
                      .first_segment = first_segment,
                      .num_segments = num_segments,
                      .is_last = false,
                      .receives = false,
                      .sends = false};
  };
  shape.stages = {stage(1, 0, 2), stage(4, 2, 1)};
  const Program program{{.kind = K::kForward, .segment = 1, .microbatch = 0},
                        {.kind = K::kUnshard, .group = 0},
                        {.kind = K::kBackward, .segment = 2, .microbatch = 0}};
  EXPECT_EQ(one_line(with_stages(program, shape)),
            "Forward st1 s1 mb0; Unshard g0; Backward st4 s2 mb0");
  shape.stages.clear();
  EXPECT_EQ(with_stages(program, shape), program);
}

TEST(Timeline, PlacesBarsInProportionToTheirTimes) {
  const std::string svg = draw_timeline(kPrograms, kSpans, "");
  // 1180 pixels are 4 s.
  EXPECT_EQ(count(svg, "x=\"170.00\" y=\"78.00\" width=\"295.00\""), 1);
  EXPECT_EQ(count(svg, "x=\"760.00\" y=\"78.00\" width=\"590.00\""), 1);
  EXPECT_EQ(count(svg, "x=\"612.50\" y=\"112.00\" width=\"295.00\""), 1);
  EXPECT_EQ(count(svg, ">4 s</text>"), 1);
}

TEST(Timeline, FramesPairsThatRunTogether) {
  Action forward = on(K::kForward, 0, 1);
  forward.overlaps_next = true;
  const std::vector<Program> programs{
      {on(K::kForward, 0, 0), forward, on(K::kBackward, 0, 0), on(K::kBackward, 0, 1)}};
  const std::vector<std::vector<Span>> spans{
      {{0.0, 1.0}, {1.0, 2.0}, {2.0, 3.0}, {3.0, 4.0}}};
  EXPECT_EQ(count(draw_timeline(programs, spans, ""), "stroke=\"black\""), 2);
}

TEST(Timeline, APipelineWithoutWorkIsAnEmptyPicture) {
  const std::vector<Program> programs{{}};
  const std::vector<std::vector<Span>> spans{{}};
  EXPECT_EQ(count(draw_timeline(programs, spans, ""), "bubble 0.0 %"), 1);
}

TEST(Timeline, RefusesSpansThatDoNotFit) {
  const auto error = [](const std::vector<std::vector<Span>>& spans) -> std::string {
    try {
      draw_timeline(kPrograms, spans, "");
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error({{}}), "draw_timeline: got programs of 2 ranks and spans of 1");
  EXPECT_EQ(error({{}, {}}), "draw_timeline: rank 0 has 4 actions and 0 spans");
  auto spans = kSpans;
  spans[1][0] = {2.0, 1.0};
  EXPECT_EQ(error(spans), "draw_timeline: rank 1, action 0 has a span from 2 to 1");
}

}  // namespace
}  // namespace torchtitan::plan
