// A request to stop, made by SIGTERM, as a flag that the training loop reads.
//
// A Python signal handler runs only once the interpreter is back in Python code, which
// may take as long as a collective; this flag is set at once. What follows from it is
// for all ranks to agree on, so nothing that waits for other ranks gives up because of
// it.
#pragma once

#include <chrono>

namespace torchtitan::core {

// Takes SIGTERM over from whoever had it (so install it after other libraries): the
// first one sets the flag; another one ends the process as if there were no handler,
// if it comes `echo` or more after the first. Before that it is taken for the same
// request: who ends a service signals the launcher and its ranks, and the launcher
// signals its ranks once more. Calling it again arms it again; a flag that is set
// stays. Throws std::system_error if the system refuses.
void install_stop_signal(std::chrono::milliseconds echo);

// True from the first SIGTERM after the installation on.
bool stop_requested();

}  // namespace torchtitan::core
