// Whether an action names what a program's shape has.
#pragma once

#include <string>

#include "plan/action.h"
#include "plan/stage_ledger.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

// What is wrong with the fields of an action of a rank's program, or an empty text:
// indices that are missing, out of range or not of its kind, a Wait of nothing, and,
// without training, what only has a place in a program with backward.
std::string wrong_field(const Action& action, const StepShape& shape,
                        const StageLedger& stages, bool training);

}  // namespace torchtitan::plan
