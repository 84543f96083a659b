// What the segments of a rank exchange, from sizes alone.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nn/model.h"
#include "nn/parameter_group.h"
#include "nn/stage_transport.h"
#include "plan/step_shape.h"

namespace torchtitan::nn {

// `shape`, of a rank's part of a model, with the exchanges of every segment and with
// the bytes that stages send and receive. Nothing is computed or allocated, and no
// other rank is asked: the part may be the one that trains.
//   part     with the segments and groups of `shape`
//   stages   of the part; none where it is the whole model
//   options  dtypes of parameters and gradients, and the device of the run
//   hidden   sizes of every value that segments hand on, in compute_dtype, as this rank
//            has it of a microbatch
//   tokens   [rows, tokens] of a microbatch on this rank: what else segments read
// Throws ValueError for a value between stages that is not in `hidden`.
plan::StepShape with_exchanges(
    const Model& part, const Stages& stages, const GroupOptions& options,
    const std::map<std::string, std::vector<int64_t>>& hidden,
    const std::vector<int64_t>& tokens, plan::StepShape shape);

}  // namespace torchtitan::nn
