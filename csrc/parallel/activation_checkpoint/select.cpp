#include "parallel/activation_checkpoint/select.h"

#include <algorithm>

#include "base/errors.h"
#include "parallel/activation_checkpoint/memory_budget.h"
#include "parallel/activation_checkpoint/per_operation.h"

namespace torchtitan::parallel::activation_checkpoint {

std::vector<bool> select(const std::vector<std::string>& segment_names,
                         const Policy& policy) {
  base::check_value(
      policy.mode != Policy::Mode::kSelective || policy.every >= 1,
      "activation_checkpoint.selective_ac_option: expected a positive number "
      "of layers, found ",
      policy.every);
  std::vector<bool> chosen;
  int64_t block = 0;
  for (const auto& name : segment_names) {
    const bool is_block = name.starts_with("layers.");
    if (is_block) ++block;
    chosen.push_back(
        is_block && policy.mode != Policy::Mode::kNone &&
        (policy.mode != Policy::Mode::kSelective || block % policy.every == 0));
  }
  return chosen;
}

namespace {

Choice within_budget(const nn::Model& model, const Policy& policy, Choice choice) {
  std::vector<Item> items;
  std::vector<size_t> counts;  // operations of each segment
  for (size_t s = 0; s < model.segments.size(); ++s) {
    counts.push_back(0);
    if (!choice.recompute[s]) continue;
    const auto operations = model.segments[s]->operations(policy.batch);
    base::check_value(!operations.empty(),
                      "activation_checkpoint.mode: expected none, full or selective, "
                      "found memory_budget, which needs to know the operations of ",
                      model.segments[s]->name());
    counts.back() = operations.size();
    for (const auto& each : operations) items.push_back({each.bytes, each.flops});
  }
  auto packing = pack(items, policy.budget);
  auto next = packing.kept.begin();
  for (size_t s = 0; s < model.segments.size(); ++s) {
    const auto end = next + static_cast<std::ptrdiff_t>(counts[s]);
    const std::vector<bool> kept(next, end);
    next = end;
    if (!choice.recompute[s]) continue;
    model.segments[s]->keep(kept);
    choice.recompute[s] = std::find(kept.begin(), kept.end(), false) != kept.end();
  }
  choice.curve = std::move(packing.curve);
  choice.chosen = packing.cost;
  return choice;
}

}  // namespace

Choice choose(const nn::Model& model, const Policy& policy) {
  std::vector<std::string> names;
  for (const auto& segment : model.segments) names.push_back(segment->name());
  Choice choice{.recompute = select(names, policy)};
  for (const auto& segment : model.segments) segment->keep({});
  if (policy.mode == Policy::Mode::kMemoryBudget) {
    return within_budget(model, policy, std::move(choice));
  }
  if (policy.mode == Policy::Mode::kPerOperation) {
    for (size_t s = 0; s < model.segments.size(); ++s) {
      if (!choice.recompute[s]) continue;
      auto& segment = *model.segments[s];
      segment.keep(keep_per_operation(model, segment, segment.operations(policy.batch),
                                      policy.recomputed_modules));
    }
  }
  return choice;
}

}  // namespace torchtitan::parallel::activation_checkpoint
