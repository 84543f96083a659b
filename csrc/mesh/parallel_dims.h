// The degree of every parallelism, checked against the number of ranks.
#pragma once

#include <cstdint>

namespace torchtitan::mesh {

// Degrees as the section [parallelism] of a configuration gives them.
struct ParallelDims {
  int64_t dp_replicate;  // copies of the sharded model (DDP, HSDP)
  int64_t dp_shard;      // ranks that share one copy (FSDP); -1: all that are left
  int64_t cp;            // ranks that share a sequence
  int64_t tp;            // ranks that share a matrix
  int64_t pp;            // pipeline stages
  int64_t ep;            // ranks that share the experts
  int64_t etp;           // ranks that share one expert's matrices; unused when ep is 1
  int64_t world_size;

  bool operator==(const ParallelDims&) const = default;
};

// `requested` with dp_shard inferred when it is -1. The result obeys:
//   every degree >= 1,  pp * dp_replicate * dp_shard * cp * tp == world_size,
//   and when ep > 1: etp is 1 or tp, and ep * etp divides dp_shard * cp * tp.
// Throws one std::invalid_argument that lists every broken rule, with the configuration
// fields as the user knows them (parallelism.tensor_parallel_degree) and their values.
ParallelDims resolve(const ParallelDims& requested);

}  // namespace torchtitan::mesh
