// Programs of all ranks as a picture: what each rank does when.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "plan/program.h"
#include "plan/simulate.h"
#include "plan/step_shape.h"

namespace torchtitan::plan {

// An SVG text with a lane for each rank, time from left to right from 0 to the last
// end. Compute is a bar in the colour of its kind with its microbatch's number (paler
// for each further stage of its rank, framed for pairs that run together), under it
// thin bars of what is communicated; what stays grey is idle. Above stand the title,
// idle_share(), and the most live activations of a rank: actions Forward
// whose Backward or BackwardWeight has not run, of stages or else of segments.
//   programs  by rank
//   spans     by rank and action, in seconds: predicted (plan/simulate_pipeline.h,
//             plan/simulate.h) or measured; of a start: of its communication
// Throws std::invalid_argument unless each action has a span that does not end before
// it begins.
std::string draw_timeline(std::span<const Program> programs,
                          std::span<const std::vector<Span>> spans,
                          const std::string& title);

// The share of the time of all ranks, from 0 to the last end, in which they run no
// compute action and no optimizer: the bubble, and all that is waited for.
// Throws as above.
double idle_share(std::span<const Program> programs,
                  std::span<const std::vector<Span>> spans);

// A rank's program with the pipeline stage of each compute action of a segment.
Program with_stages(Program program, const StepShape& shape);

}  // namespace torchtitan::plan
