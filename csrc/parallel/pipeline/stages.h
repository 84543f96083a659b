// Pipeline parallelism: a model's segments are divided into stages, and each rank has
// the segments and parameters of its own stages only.
#pragma once

#include <cstdint>
#include <vector>

#include "nn/model.h"
#include "nn/stage_transport.h"

namespace torchtitan::parallel::pipeline {

// The part of a model that one rank has. Its stages have no transport yet.
struct Part {
  nn::Model model;
  nn::Stages stages = {};
  std::vector<int64_t> segments = {};  // of the whole model, by segment of the part
  // By group: the ranks that hold it, in the order of their stages.
  std::vector<std::vector<int64_t>> ranks_of_group = {};
};

//   segments_per_stage  of all stages, in order
//   rank_of_stage       of all stages
// Segments of `whole` belong to the part afterwards: it is not used any more.
// A parameter group that stages of several ranks use is held by all of them; the first
// one counts as its owner (nn::ParameterSpec::is_first_copy).
// Throws ValueError where the stages do not add up to the model.
Part take_part(nn::Model whole, const std::vector<int64_t>& segments_per_stage,
               const std::vector<int64_t>& rank_of_stage, int64_t rank);

// The same for a model with a forward of its own, which was made with the segments of
// the rank's stages only; `segments_per_stage` are theirs. One value, nn::kHidden,
// crosses each boundary.
Part as_part(nn::Model own, const std::vector<int64_t>& segments_per_stage,
             const std::vector<int64_t>& rank_of_stage, int64_t rank);

}  // namespace torchtitan::parallel::pipeline
