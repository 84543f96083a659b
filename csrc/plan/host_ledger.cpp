#include "plan/host_ledger.h"

namespace torchtitan::plan {

HostLedger::HostLedger(const StepShape& shape)
    : shape_(shape),
      places_(shape.segments.size() * static_cast<size_t>(shape.num_microbatches),
              Place::kDevice) {}

HostLedger::Place& HostLedger::place(int64_t segment, int64_t microbatch) {
  return places_[segment * shape_.num_microbatches + microbatch];
}

std::string HostLedger::start_offload(int64_t segment, int64_t microbatch) {
  const SegmentShape& shape = shape_.segments[segment];
  if (!shape.offload) return "segment '" + shape.name + "' is not to be offloaded";
  Place& now = place(segment, microbatch);
  if (now != Place::kDevice) return "was offloaded already";
  now = Place::kLeaving;
  return "";
}

void HostLedger::end_offload(int64_t segment, int64_t microbatch) {
  place(segment, microbatch) = Place::kHost;
}

std::string HostLedger::start_reload(int64_t segment, int64_t microbatch) {
  Place& now = place(segment, microbatch);
  switch (now) {
    case Place::kDevice: return "was never offloaded";
    case Place::kLeaving: return "its Offload has not been waited for";
    case Place::kReturning:
    case Place::kReturned: return "was brought back already";
    case Place::kHost: break;
  }
  now = Place::kReturning;
  return "";
}

void HostLedger::end_reload(int64_t segment, int64_t microbatch) {
  place(segment, microbatch) = Place::kReturned;
}

std::string HostLedger::use(int64_t segment, int64_t microbatch) {
  switch (place(segment, microbatch)) {
    case Place::kLeaving: return "what Forward keeps for it is on its way to the host";
    case Place::kHost: return "what Forward keeps for it is in host memory";
    case Place::kReturning: return "what Forward keeps for it is not yet back";
    default: return "";
  }
}

}  // namespace torchtitan::plan
