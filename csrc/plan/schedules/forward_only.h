// A pipeline without backward: validation.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// The forwards of a training schedule, in its order.
Schedule forward_only(const Schedule& training);

}  // namespace torchtitan::plan::schedules
