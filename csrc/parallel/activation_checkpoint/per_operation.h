// The operations whose results are kept, as in torchtitan's selective checkpointing:
// attention, what was summed over tensor ranks, and every second product.
#pragma once

#include <string>
#include <vector>

#include "nn/model.h"

namespace torchtitan::parallel::activation_checkpoint {

// By operation of the segment. Kept are attention, every result that went through a
// reduce-scatter, and the 1st, 3rd, 5th, ... product. A product whose weight has the
// shape of that of a linear module in the segment of whose name one of
// `recomputed_modules` is a part is not kept and not counted.
// Throws ValueError if one is part of the name of another kind of module.
std::vector<bool> keep_per_operation(
    const nn::Model& model, const nn::Segment& segment,
    const std::vector<nn::Operation>& operations,
    const std::vector<std::string>& recomputed_modules);

}  // namespace torchtitan::parallel::activation_checkpoint
