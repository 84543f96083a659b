// A group as a ring: every rank sends to the next one and receives from the one before.
#pragma once

#include "collectives/group.h"

namespace torchtitan::collectives {

struct Hop {
  Handle sent, received;

  void wait() const {
    received.wait();
    sent.wait();
  }
};

// All ranks call it together; `sent` and `received` are alike in size and dtype.
Hop pass_on(const Group& group, const at::Tensor& sent, const at::Tensor& received);

}  // namespace torchtitan::collectives
