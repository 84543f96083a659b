// Random kills and refused operations, and what must hold after each.
#pragma once

#include <cstdint>
#include <string>

namespace torchtitan::durability {

// Runs jobs in folders below `folder` until in `num_kills` of them a process was
// killed, checks the folder after every job, and prints one line of JSON. The same seed
// makes the same plans; when a process is killed by time, the machine decides too.
//   returns  whether no acknowledged save was lost, nothing torn was taken for a
//            checkpoint, nothing was left over and no process outlived its job
bool run_kills(const std::string& folder, int64_t num_kills, uint64_t seed);

}  // namespace torchtitan::durability
