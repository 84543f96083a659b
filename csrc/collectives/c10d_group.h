// Groups of processes over torch.distributed: Gloo for CPU tensors, NCCL for CUDA ones.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <string>

#include "collectives/group.h"
#include "collectives/watch.h"

namespace c10d {
class ProcessGroup;
}

namespace torchtitan::collectives {

// The ranks of `process_group`; the identity if it has one. Waits for CPU tensors poll:
// they end with completion, the watch's deadline (the operation is then given up and
// the group is dead) or its abort, never inside c10d. Waits for CUDA tensors order
// streams; a hang there is for NCCL's watchdog to end. watch->close() drops the process
// group, as must happen before Python destroys it; verbs throw CollectiveError from
// then on.
Group c10d_group(const c10::intrusive_ptr<c10d::ProcessGroup>& process_group,
                 std::string name, const std::shared_ptr<Watch>& watch);

}  // namespace torchtitan::collectives
