#include "parallel/apply.h"

#include "nn/whole_group.h"
#include "parallel/fsdp/sharded_group.h"

namespace torchtitan::parallel {
namespace {

std::shared_ptr<nn::ParameterGroup> make_group(const nn::ParameterGroupSpec& spec,
                                               const ApplyOptions& options) {
  if (options.shards.size() == 1) {
    return std::make_shared<nn::WholeGroup>(spec, options.parameters, options.replicas);
  }
  return std::make_shared<fsdp::ShardedGroup>(spec, options.parameters, options.shards,
                                              options.replicas);
}

}  // namespace

Applied apply(const nn::Model& model, const ApplyOptions& options) {
  Applied applied;
  for (const auto& spec : model.groups) applied.groups.push_back(make_group(spec, options));
  std::vector<std::string> names;
  for (const auto& segment : model.segments) names.push_back(segment->name());
  applied.recompute = activation_checkpoint::select(names, options.recompute);
  using K = plan::ActionKind;
  const auto n = static_cast<int64_t>(model.segments.size());
  auto& p = applied.training_program;
  p.push_back({K::kCountTokens});
  p.push_back({.kind = K::kWait, .waits_for = K::kCountTokens});
  for (int64_t m = 0; m < options.num_microbatches; ++m) {
    for (int64_t s = 0; s < n; ++s) p.push_back({K::kForward, s, -1, m});
    for (int64_t s = n - 1; s >= 0; --s) {
      if (applied.recompute[static_cast<size_t>(s)]) p.push_back({K::kRecompute, s, -1, m});
      p.push_back({K::kBackward, s, -1, m});
    }
  }
  p.push_back({K::kClipGradient});
  p.push_back({K::kOptimizerStep});
  for (int64_t s = 0; s < n; ++s) applied.evaluation_program.push_back({K::kForward, s, -1, 0});
  return applied;
}

}  // namespace torchtitan::parallel
