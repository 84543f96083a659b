// What the training step asks of an optimizer.
#pragma once

#include "ops/adamw.h"

namespace torchtitan::optim {

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // Updates the parameters of one group from its summed gradient times scalars.clip, or
  // changes nothing where scalars.finite is 0.
  virtual void step(size_t index, const ops::AdamScalars& scalars) = 0;
  // The same for all groups.
  virtual void step_all(const ops::AdamScalars& scalars) = 0;
};

}  // namespace torchtitan::optim
