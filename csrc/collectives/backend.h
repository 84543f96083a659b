// What stands behind a Group: it starts operations that Group has already checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/group.h"

namespace torchtitan::collectives {

enum class Verb {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kBroadcast,
  kSend,
  kRecv,
  kBarrier
};

std::string_view verb_name(Verb verb);

// One call of a verb. `out` is what changes, `in` what is read; where one tensor is
// both (all_reduce, broadcast) only `out` is set. Fields that a verb has no use for
// keep their neutral value.
struct Operation {
  Verb verb;
  at::Tensor out = {};
  at::Tensor in = {};
  ReduceOp op = ReduceOp::kSum;
  int64_t peer = -1;  // root of a broadcast, other side of send and recv
  int64_t tag = 0;
  std::vector<int64_t> out_splits = {};
  std::vector<int64_t> in_splits = {};
};

// E.g. "all_gather of float32[8]": the same text on all ranks that agree.
std::string describe(const Operation& operation);

// Bytes of the larger side of the operation: those gathered, scattered, reduced, sent.
int64_t payload_bytes(const Operation& operation);

class Work {
 public:
  virtual ~Work() = default;
  virtual bool completed() = 0;
  virtual void wait() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  // Never waits for other ranks. Null means completed.
  virtual std::shared_ptr<Work> start(Operation operation) = 0;
};

}  // namespace torchtitan::collectives
