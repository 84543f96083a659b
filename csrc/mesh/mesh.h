// Ranks as a grid. Every axis is a set of ranks at a constant distance, so an axis is a
// size and a stride, and rank arithmetic replaces tables:
//
//   axis          size                            ranks of an axis differ in
//   world         world_size                      everything
//   pp            pp                              the pipeline stage     (slowest)
//   dp_replicate  dp_replicate                    the copy of the model
//   dp_shard      dp_shard                        the shard of the batch's copy
//   cp            cp                              the part of the sequence
//   tp            tp                              the part of a matrix   (fastest)
//   batch         dp_replicate * dp_shard         the rows of the batch they read
//   fsdp          dp_shard * cp                   the parameter shard of dense weights
//   loss          dp_replicate * dp_shard * cp    the tokens they see
//   efsdp         fsdp * tp / (ep * etp)          the parameter shard of expert weights
//   ep            ep                              the experts they hold
//   etp           etp (tp when ep is 1)           the part of an expert's matrix
//
// The last three cut the same ranks as fsdp x tp in another way (order efsdp, ep, etp);
// without expert parallelism they are fsdp, 1 and tp.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "mesh/parallel_dims.h"

namespace torchtitan::mesh {

// Axis name -> position along it.
using Coordinates = std::map<std::string, int64_t, std::less<>>;

class Mesh {
 public:
  // Resolves `dims` (parallel_dims.h); throws what resolve() throws.
  explicit Mesh(const ParallelDims& dims);

  const ParallelDims& dims() const { return dims_; }
  int64_t world_size() const { return dims_.world_size; }

  // Names of all axes, in the order of the table above.
  std::vector<std::string> axes() const;

  // The members below throw std::invalid_argument for an unknown axis, listing the
  // known ones, or for a rank outside the world.
  int64_t size(std::string_view axis) const;
  int64_t coordinate(int64_t rank, std::string_view axis) const;

  // Position of `rank` on every axis.
  Coordinates coordinates(int64_t rank) const;

  // The ranks that share all other coordinates with `rank`, ordered along `axis`: the
  // members of its communication group. Element coordinate(rank, axis) is `rank`.
  std::vector<int64_t> ranks(std::string_view axis, int64_t rank) const;

 private:
  struct Axis {
    std::string name;
    int64_t size;
    int64_t stride;
  };

  const Axis& find(std::string_view axis) const;
  void check_rank(int64_t rank) const;

  ParallelDims dims_;
  std::vector<Axis> axes_;
};

}  // namespace torchtitan::mesh
