// How values get from a pipeline stage to the next one and their gradients back, where
// stages lie on different ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plan/action.h"
#include "plan/step_shape.h"

namespace torchtitan::nn {

class StageTransport {
 public:
  using Values = std::map<std::string, at::Tensor>;

  virtual ~StageTransport() = default;

  // Called before the messages of a run. Microbatches of one run have the same shapes;
  // runs with equal `signature` have the same shapes in every message.
  virtual void begin(const std::string& signature) = 0;

  // `start` is SendActivation or SendGradient. Names and number of the values are the
  // same in every microbatch; undefined gradients travel as zeros. They are not written
  // until wait() has returned.
  virtual void start_send(const plan::Action& start, Values values) = 0;
  // `start` is ReceiveActivation or ReceiveGradient.
  virtual void start_receive(const plan::Action& start) = 0;
  // What was received, or nothing where `wait` is of a send.
  virtual Values wait(const plan::Action& wait) = 0;
};

// The stages that one rank has; none where it has the whole model.
struct Stages {
  std::vector<plan::StageShape> shapes;
  // Values that cross the boundary before and behind each of them.
  std::vector<std::vector<std::string>> inputs;
  std::vector<std::vector<std::string>> outputs;
  std::shared_ptr<StageTransport> transport;
};

}  // namespace torchtitan::nn
