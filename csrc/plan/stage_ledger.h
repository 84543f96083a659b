// What the stages of a rank have received and sent, while a program is replayed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/step_shape.h"

namespace torchtitan::plan {

// Of one stage on one microbatch.
struct StageMessages {
  bool inputs = false;
  bool gradients = false;
  bool sent_outputs = false;
  bool sent_gradients = false;
};

class StageLedger {
 public:
  // A shape without stages is one stage of all segments.
  explicit StageLedger(const StepShape& shape);

  bool has(int64_t stage) const;
  const StageShape& stage(int64_t stage) const;
  const StageShape& with_segment(int64_t segment) const;
  StageMessages& messages(int64_t stage, int64_t microbatch);

  // The first message that should have been sent and was not, or an empty text.
  std::string missing(bool training) const;

 private:
  size_t position(int64_t stage) const;

  std::vector<StageShape> stages_;
  std::vector<std::vector<StageMessages>> messages_;  // [position][microbatch]
};

}  // namespace torchtitan::plan
