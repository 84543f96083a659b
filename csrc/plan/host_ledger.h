// What of the segments is in host memory, while a program is replayed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/step_shape.h"

namespace torchtitan::plan {

// Each of these takes a segment and a microbatch. Those that return a text say what is
// wrong with the action; it is empty, and the action done, where nothing is.
class HostLedger {
 public:
  explicit HostLedger(const StepShape& shape);

  std::string start_offload(int64_t segment, int64_t microbatch);
  void end_offload(int64_t segment, int64_t microbatch);
  std::string start_reload(int64_t segment, int64_t microbatch);
  void end_reload(int64_t segment, int64_t microbatch);
  // By a Recompute or a backward.
  std::string use(int64_t segment, int64_t microbatch);

 private:
  enum class Place : uint8_t { kDevice, kLeaving, kHost, kReturning, kReturned };

  Place& place(int64_t segment, int64_t microbatch);

  const StepShape& shape_;
  std::vector<Place> places_;  // [segment * num_microbatches + microbatch]
};

}  // namespace torchtitan::plan
