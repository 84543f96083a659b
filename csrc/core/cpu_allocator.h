// An allocator for CPU tensors that keeps freed pages for the next tensor of about the
// same size, and counts. A step allocates the same sizes again and again; giving the
// pages back to the system and faulting them in anew can cost as much as computing.
#pragma once

#include "core/memory_counter.h"

namespace torchtitan::core {

// Puts the allocator in place of torch's at the first call, for the rest of the process
// (tensors made before keep theirs), and returns its counter: bytes that tensors asked
// for, without rounding and without kept pages. Memory is aligned to 64 bytes and not
// cleared. Safe from any thread and in a forked child.
MemoryCounter& cpu_memory();

// The same for tensors that the calling thread makes after its first call, whoever
// frees them: what one rank holds where ranks are threads of one process. Like the
// tensors, the counter may outlive the thread.
MemoryCounter& thread_memory();

// Gives back to the system what is kept for reuse and not in a tensor now.
void release_kept_cpu_memory();

}  // namespace torchtitan::core
