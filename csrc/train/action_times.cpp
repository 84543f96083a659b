#include "train/action_times.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>

namespace torchtitan::train {

void ActionTimes::begin_run(size_t num_actions) {
  marks_.clear();
  marks_.reserve(num_actions + 1);
}

void ActionTimes::mark() {
  using Seconds = std::chrono::duration<double>;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  marks_.push_back(std::chrono::duration_cast<Seconds>(now).count());
}

std::vector<plan::Span> ActionTimes::spans(const plan::Program& program) const {
  TORCH_CHECK(marks_.size() == program.size() + 1, "no finished run of ",
              program.size(), " actions was recorded");
  std::vector<plan::Span> spans;
  for (size_t i = 0; i < program.size(); ++i) {
    spans.push_back({marks_[i], marks_[i + 1]});
    if (!plan::is_start(program[i])) continue;
    const auto wait = std::find(program.begin() + static_cast<std::ptrdiff_t>(i),
                                program.end(), plan::wait_for(program[i]));
    if (wait == program.end()) continue;
    spans[i].end = marks_[static_cast<size_t>(wait - program.begin()) + 1];
  }
  return spans;
}

}  // namespace torchtitan::train
