#include "plan/schedules/sequential.h"

namespace torchtitan::plan::schedules {
namespace {

void append(Program& program, ActionKind kind, int64_t segment, int64_t microbatch) {
  program.push_back({.kind = kind, .segment = segment, .microbatch = microbatch});
}

}  // namespace

Program sequential(const StepShape& shape) {
  const auto num_segments = static_cast<int64_t>(shape.segments.size());
  Program program;
  for (int64_t microbatch = 0; microbatch < shape.num_microbatches; ++microbatch) {
    for (int64_t segment = 0; segment < num_segments; ++segment) {
      append(program, ActionKind::kForward, segment, microbatch);
    }
    for (int64_t segment = num_segments; segment-- > 0;) {
      append(program, ActionKind::kBackward, segment, microbatch);
    }
  }
  return program;
}

Program sequential_forward(const StepShape& shape) {
  Program program;
  for (int64_t microbatch = 0; microbatch < shape.num_microbatches; ++microbatch) {
    for (size_t segment = 0; segment < shape.segments.size(); ++segment) {
      append(program, ActionKind::kForward, static_cast<int64_t>(segment), microbatch);
    }
  }
  return program;
}

}  // namespace torchtitan::plan::schedules
