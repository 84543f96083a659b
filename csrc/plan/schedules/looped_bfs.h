// Breadth-first pipeline (Lamy-Poirier, 2022): a stage on all microbatches before the
// rank's next stage, so that each stage's parameters are gathered twice a step.
#pragma once

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// Stage s on rank s % p; any number of microbatches, which all live at once on all
// stages. Backwards run from the last microbatch to the first, as in torch.
Schedule looped_bfs(int64_t num_ranks, int64_t stages_per_rank,
                    int64_t num_microbatches);

}  // namespace torchtitan::plan::schedules
