#include "mesh/parallel_dims.h"

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "base/errors.h"

namespace torchtitan::mesh {
namespace {

using base::message;

struct Degree {
  const char* field;
  int64_t value;
};

constexpr const char* kShardField = "parallelism.data_parallel_shard_degree";

// Product of positive degrees; the largest int64 when it does not fit, which no world
// size reaches.
int64_t saturating_product(std::initializer_list<int64_t> degrees) {
  int64_t product = 1;
  for (const int64_t degree : degrees) {
    if (__builtin_mul_overflow(product, degree, &product)) {
      return std::numeric_limits<int64_t>::max();
    }
  }
  return product;
}

std::vector<std::string> broken_minimums(const ParallelDims& dims) {
  const std::array<Degree, 8> degrees{{
      {"parallelism.pipeline_parallel_degree", dims.pp},
      {"parallelism.data_parallel_replicate_degree", dims.dp_replicate},
      {kShardField, dims.dp_shard == -1 ? 1 : dims.dp_shard},
      {"parallelism.context_parallel_degree", dims.cp},
      {"parallelism.tensor_parallel_degree", dims.tp},
      {"parallelism.expert_parallel_degree", dims.ep},
      {"parallelism.expert_tensor_parallel_degree", dims.etp},
      {"the number of ranks (WORLD_SIZE)", dims.world_size},
  }};
  std::vector<std::string> broken;
  for (const auto& [field, value] : degrees) {
    if (value >= 1) continue;
    broken.push_back(message(field, " must be at least 1",
                             field == kShardField ? " or -1 (all ranks left)" : "",
                             ", got ", value));
  }
  return broken;
}

std::string factors(const ParallelDims& dims) {
  return message("pipeline ", dims.pp, " x replicate ", dims.dp_replicate, " x shard ",
                 dims.dp_shard, " x context ", dims.cp, " x tensor ", dims.tp);
}

void check_product(ParallelDims& dims, std::vector<std::string>& broken) {
  const int64_t others =
      saturating_product({dims.pp, dims.dp_replicate, dims.cp, dims.tp});
  if (dims.dp_shard == -1) {
    if (dims.world_size % others == 0) {
      dims.dp_shard = dims.world_size / others;
    } else {
      broken.push_back(
          message(kShardField, " = -1 cannot be inferred: ", dims.world_size,
                  " ranks are not divisible by ", others, " (", factors(dims), ")"));
    }
  } else if (saturating_product({others, dims.dp_shard}) != dims.world_size) {
    broken.push_back(message("the degrees need ",
                             saturating_product({others, dims.dp_shard}), " ranks (",
                             factors(dims), "), but there are ", dims.world_size));
  }
}

void check_experts(const ParallelDims& dims, std::vector<std::string>& broken) {
  if (dims.ep == 1) return;
  if (dims.etp != 1 && dims.etp != dims.tp) {
    broken.push_back(
        message("parallelism.expert_tensor_parallel_degree must be 1 or "
                "parallelism.tensor_parallel_degree = ",
                dims.tp, ", got ", dims.etp));
  }
  if (dims.dp_shard == -1) return;  // already reported
  const int64_t ranks = saturating_product({dims.dp_shard, dims.cp, dims.tp});
  const int64_t expert_ranks = saturating_product({dims.ep, dims.etp});
  if (ranks % expert_ranks != 0) {
    broken.push_back(message("expert parallel ", dims.ep, " x expert tensor ", dims.etp,
                             " = ", expert_ranks, " must divide shard ", dims.dp_shard,
                             " x context ", dims.cp, " x tensor ", dims.tp, " = ",
                             ranks));
  }
}

}  // namespace

ParallelDims resolve(const ParallelDims& requested) {
  ParallelDims dims = requested;
  std::vector<std::string> broken = broken_minimums(dims);
  if (broken.empty()) {  // products of degrees below 1 would only repeat the complaint
    check_product(dims, broken);
    check_experts(dims, broken);
  }
  std::string text = "the parallel degrees do not fit together:";
  for (const std::string& rule : broken) text += "\n  " + rule;
  base::check_value(broken.empty(), text);
  return dims;
}

}  // namespace torchtitan::mesh
