#include "train/step.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "optim/adam.h"
#include "parallel/apply.h"

namespace torchtitan::train {
namespace {

// loss = sum over labels that count of weight * input: its gradient is known.
class Dot final : public nn::AutogradSegment {
 public:
  Dot() : AutogradSegment("dot", {"input", "labels"}, {"loss"}, {{0, 0}}) {}

  nn::TensorList compute(const nn::TensorList& inputs,
                         const nn::TensorList& parameters) const override {
    const auto counts = inputs[1].ne(-100).to(parameters[0].scalar_type());
    return {at::mul(parameters[0], inputs[0].mul(counts)).sum()};
  }

  nn::Flops flops(const nn::TensorList& /*inputs*/,
                  const nn::TensorList& /*parameters*/) const override {
    return {};
  }
};

struct Fixture {
  explicit Fixture(double max_norm, at::ScalarType compute_dtype = at::kDouble) {
    model.groups = {{"w", {{"w", {4}, nn::Init::constant(1.0)}}}};
    model.segments = {std::make_shared<Dot>()};
    applied = parallel::apply(
        parallel::whole(model),
        {.shards = collectives::Group("fsdp"),
         .replicas = collectives::Group("dp_replicate"),
         .parameters = {.master_dtype = at::kDouble,
                        .compute_dtype = compute_dtype,
                        .reduce_dtype = at::kDouble,
                        .device = at::Device(at::kCPU)},
         .reshard_after_forward = plan::Reshard::kDefault,
         .overlap_depth = 1,
         .recompute = {parallel::activation_checkpoint::Policy::Mode::kNone, 1},
         .num_microbatches = 1,
         .early_optimizer_step = false});
    group = applied.groups[0];
    group->initialize(0);
    optim::Adam adam({{group->master(), group->gradient()}},
                     {.update = {.beta1 = 0.9,
                                 .beta2 = 0.95,
                                 .eps = 1e-8,
                                 .weight_decay = 0.0,
                                 .decoupled = true},
                      .implementation = optim::Implementation::kFused,
                      .state_dtype = at::kDouble});
    step = std::make_unique<Step>(
        StepParts{.model = model,
                  .groups = applied.groups,
                  .recompute = applied.recompute,
                  .training_program = applied.training_program,
                  .stages = applied.stages,
                  .evaluation_program = applied.evaluation_program,
                  .evaluation_microbatches = applied.evaluation_microbatches,
                  .optimizer = std::make_shared<optim::Adam>(std::move(adam)),
                  .loss_axis = collectives::Group("loss"),
                  .tensor_axis = collectives::Group("tp"),
                  .pipeline_axis = collectives::Group("pp"),
                  .max_norm = max_norm});
  }

  static Batch batch(const std::vector<double>& input) {
    return {{"input", at::tensor(input, at::kDouble)},
            {"labels", at::tensor({0, 0, -100, 0}, at::kLong)}};
  }

  nn::Model model;
  parallel::Applied applied;
  std::shared_ptr<nn::ParameterGroup> group;
  std::unique_ptr<Step> step;
};

TEST(Step, DividesByTheValidTokensAndReportsTheNormBeforeClipping) {
  Fixture f(/*max_norm=*/1.0);
  const auto result = f.step->run({Fixture::batch({3, 6, 9, 0})}, 0.1, 1);
  EXPECT_EQ(result.num_tokens.item<double>(), 3.0);
  EXPECT_DOUBLE_EQ(result.loss.item<double>(), 3.0);  // (3 + 6 + 0) / 3
  EXPECT_DOUBLE_EQ(result.grad_norm.item<double>(), std::sqrt(1.0 + 4.0));
  EXPECT_EQ(result.finite.item<double>(), 1.0);
  // Adam's first update is lr times the sign of the gradient.
  EXPECT_NEAR(f.group->master()[0].item<double>(), 0.9, 1e-6);
  EXPECT_EQ(f.group->master()[2].item<double>(), 1.0);
}

TEST(Step, RecordsWhenEachActionRanWhereThatIsAskedFor) {
  Fixture f(1.0);
  const auto seconds = [] {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(now).count();
  };
  f.step->run({Fixture::batch({3, 6, 9, 0})}, 0.1, 1);
  EXPECT_THROW(f.step->times(), c10::Error);
  f.step->record_times(true);
  const double before = seconds();
  f.step->run({Fixture::batch({3, 6, 9, 0})}, 0.1, 2);
  const double after = seconds();
  f.step->record_times(false);
  f.step->run({Fixture::batch({3, 6, 9, 0})}, 0.1, 3);
  f.step->evaluate(Fixture::batch({3, 6, 9, 0}));
  const auto& program = f.step->training_program();
  const auto times = f.step->times();
  ASSERT_EQ(times.size(), program.size());
  double last = before;
  for (size_t i = 0; i < times.size(); ++i) {
    EXPECT_GE(times[i].begin, last);
    EXPECT_GE(times[i].end, times[i].begin);
    last = times[i].begin;
    if (plan::is_start(program[i])) {
      const auto wait =
          std::find(program.begin(), program.end(), plan::wait_for(program[i])) -
          program.begin();
      EXPECT_EQ(times[i].end, times.at(static_cast<size_t>(wait)).end);
    } else {
      last = times[i].end;
    }
  }
  EXPECT_LE(last, after);
}

TEST(Step, ANumberThatIsNotFiniteChangesNoWeight) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity()}) {
    Fixture f(1.0);
    const auto result = f.step->run({Fixture::batch({bad, 1, 1, 1})}, 0.1, 1);
    EXPECT_EQ(result.finite.item<double>(), 0.0);
    EXPECT_TRUE(at::equal(f.group->master(), at::ones({4}, at::kDouble)));
  }
}

TEST(Step, EvaluationGivesTheSumOfTheValidTokens) {
  Fixture f(1.0);
  const auto evaluation = f.step->evaluate(Fixture::batch({3, 6, 9, 0}));
  EXPECT_DOUBLE_EQ(evaluation.loss_sum.item<double>(), 9.0);
  EXPECT_EQ(evaluation.num_tokens.item<double>(), 3.0);
}

TEST(Step, EvaluationSeesTheWeightsOfTheLastStepAndKeepsItsGradient) {
  Fixture f(/*max_norm=*/100.0, /*compute_dtype=*/at::kFloat);
  f.step->run({Fixture::batch({3, 6, 9, 0})}, 0.1, 1);
  const auto gradient = f.group->gradient().clone();
  const auto evaluation = f.step->evaluate(Fixture::batch({3, 6, 9, 0}));
  EXPECT_NEAR(evaluation.loss_sum.item<double>(), 9.0 * 0.9, 1e-5);
  EXPECT_EQ(gradient[1].item<double>(), 2.0);
  EXPECT_TRUE(at::equal(f.group->gradient(), gradient));
}

TEST(Step, RefusesBatchesWithoutLabelsOrValues) {
  Fixture f(1.0);
  EXPECT_THROW(f.step->run({{{"input", at::zeros({4})}}}, 0.1, 1), c10::ValueError);
  EXPECT_THROW(f.step->run({}, 0.1, 1), c10::ValueError);
  try {
    f.step->run({{{"labels", at::zeros({4}, at::kLong)}}}, 0.1, 1);
    FAIL() << "the segment has no input";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("reads the value 'input'"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace torchtitan::train
