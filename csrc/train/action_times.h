// When the actions of a run begin and end, by the clock of the host.
//
// That is when the host works on them: on a device with a queue of its own, when their
// work is put into the queue. Seconds of a clock that all processes of a machine share
// (on Linux CLOCK_MONOTONIC); those of two machines have nothing to do with each other.
#pragma once

#include <vector>

#include "plan/program.h"
#include "plan/simulate.h"

namespace torchtitan::train {

class ActionTimes {
 public:
  void begin_run(size_t num_actions);
  // The next action begins and the one before it ends: one runs at a time.
  void mark();
  void end_run() { mark(); }

  // By action of the program that has run. Of a start whose Wait is in the program:
  // until the Wait has ended, so at least as long as its communication.
  std::vector<plan::Span> spans(const plan::Program& program) const;

 private:
  std::vector<double> marks_;  // begin of each action, then the end of the last
};

}  // namespace torchtitan::train
