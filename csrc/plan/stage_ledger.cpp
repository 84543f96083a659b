#include "plan/stage_ledger.h"

#include <algorithm>

#include "base/errors.h"

namespace torchtitan::plan {

StageLedger::StageLedger(const StepShape& shape) : stages_(shape.stages) {
  if (stages_.empty()) {
    stages_ = {{.index = 0,
                .first_segment = 0,
                .num_segments = static_cast<int64_t>(shape.segments.size()),
                .is_last = true,
                .receives = false,
                .sends = false}};
  }
  messages_.resize(stages_.size(), std::vector<StageMessages>(shape.num_microbatches));
}

size_t StageLedger::position(int64_t stage) const {
  const auto found =
      std::find_if(stages_.begin(), stages_.end(),
                   [&](const StageShape& each) { return each.index == stage; });
  return static_cast<size_t>(found - stages_.begin());
}

bool StageLedger::has(int64_t stage) const { return position(stage) < stages_.size(); }

const StageShape& StageLedger::stage(int64_t stage) const {
  return stages_.at(position(stage));
}

const StageShape& StageLedger::with_segment(int64_t segment) const {
  return *std::find_if(stages_.begin(), stages_.end(),
                       [&](const StageShape& stage) { return segment < stage.end(); });
}

StageMessages& StageLedger::messages(int64_t stage, int64_t microbatch) {
  return messages_.at(position(stage)).at(static_cast<size_t>(microbatch));
}

std::string StageLedger::missing(bool training) const {
  for (size_t i = 0; i < stages_.size(); ++i) {
    const StageShape& stage = stages_[i];
    for (size_t microbatch = 0; microbatch < messages_[i].size(); ++microbatch) {
      const StageMessages& messages = messages_[i][microbatch];
      if (stage.sends && !messages.sent_outputs) {
        return base::message("SendActivation st", stage.index, " mb", microbatch);
      }
      if (stage.receives && training && !messages.sent_gradients) {
        return base::message("SendGradient st", stage.index, " mb", microbatch);
      }
    }
  }
  return "";
}

}  // namespace torchtitan::plan
