// Tensor parallelism as a table: which dim of which parameters is divided among the
// ranks of the tensor axis (Shoeybi et al. 2019). What the table does not name is held
// whole by every rank.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/group.h"
#include "nn/parameter.h"

namespace torchtitan::parallel::tensor {

struct Rule {
  std::string_view suffix;  // of the parameter's name, from the start or behind a dot
  int64_t dim;              // that is divided, like torch.chunk
};

// Makes every spec that of this rank's piece. With one rank nothing changes.
// Throws ValueError for a rule whose dim a parameter does not have.
void split(std::vector<nn::ParameterGroupSpec>& groups, std::span<const Rule> rules,
           const collectives::Group& axis);

// The same by full names; those of no parameter here are passed over.
void split(std::vector<nn::ParameterGroupSpec>& groups,
           const std::map<std::string, int64_t>& dims, const collectives::Group& axis);

}  // namespace torchtitan::parallel::tensor
