#pragma once
#include <string>
#include <vector>
#include "plan/action.h"
namespace torchtitan::plan {
using Program = std::vector<Action>;
std::string to_string(const Action& action);
}
