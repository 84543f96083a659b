// Schedules as text in torch's "compute only" CSV format: a row per rank, cells in the
// order of their execution.
//   2F0  2B0  2I0  2W0           stage 2, microbatch 0: forward, backward, its two
//   halves (2F1;5B0)OVERLAP_F_B         a forward and a backward that run together
//   empty                        nothing; only aligns a row with others
#pragma once

#include <string>
#include <string_view>

#include "plan/schedules/schedule.h"

namespace torchtitan::plan::schedules {

// The schedule of a text. Stages lie where their rows say; stages and microbatches are
// counted from 0 without gaps. Throws std::invalid_argument that names row and column
// (both from 1) for a cell that cannot be read and for everything find_problem finds.
Schedule parse_csv(std::string_view text);

// One line per rank, each with an end of line; without empty cells.
std::string to_csv(const Schedule& schedule);

}  // namespace torchtitan::plan::schedules
