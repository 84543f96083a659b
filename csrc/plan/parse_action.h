// Actions read from a text, such as a recording of a run.
#pragma once

#include <string>

#include "plan/action.h"

namespace torchtitan::plan {

// The action that to_string(Action) writes as this text. Throws std::invalid_argument
// for any other text.
Action parse_action(const std::string& text);

}  // namespace torchtitan::plan
