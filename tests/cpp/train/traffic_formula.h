// Calls and bytes of every collective of a step of a tiny Llama, from the sizes of the
// model and the degrees alone: nothing of the plan or of the model's code is asked.
#pragma once

#include <map>
#include <string>

#include "plan/traffic.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {

using TrafficMap = std::map<plan::Channel, plan::Traffic>;  // axis and verb

// Of one rank in any step but the first. Policies of a pipeline: groups stay gathered
// for the step, or Reshard::kAlways without overlap; no tied embeddings.
TrafficMap traffic_formula(const Problem& problem, const Layout& layout, int64_t rank);

// What the first step sends beside it: the shapes of what crosses borders of stages.
TrafficMap headers_of_first_step(const Layout& layout, int64_t rank);

// Position of the rank in its pipeline.
int64_t pipeline_rank(const Layout& layout, int64_t rank);

// E.g. "pp 2 by 1F1B, dp_shard 2, tp 2, whole logits".
std::string words_of(const Layout& layout);

}  // namespace torchtitan::train::testing
