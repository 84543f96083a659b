// The training step of one rank as data: printed, drawn, simulated, tested and
// executed.
#pragma once

#include <string>
#include <vector>

#include "plan/action.h"

namespace torchtitan::plan {

// Executed first to last.
using Program = std::vector<Action>;

// One line per action, in the words of to_string(Action).
std::string to_string(const Program& program);

}  // namespace torchtitan::plan
