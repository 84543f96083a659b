#include "nn/own_forward.h"

#include <utility>

namespace torchtitan::nn {

CalledSegment::CalledSegment(std::string name, std::vector<ParameterRef> parameters)
    : Segment(std::move(name), {}, {}, std::move(parameters)) {}

TensorList CalledSegment::forward(const TensorList& /*inputs*/,
                                  const TensorList& /*parameters*/,
                                  std::unique_ptr<Saved>* /*saved*/) {
  TORCH_CHECK(false, "segment ", name(), " is run by its model's own forward");
}

TensorList CalledSegment::backward(std::unique_ptr<Saved> /*saved*/,
                                   const TensorList& /*output_gradients*/,
                                   const TensorList& /*parameters*/) {
  TORCH_CHECK(false, "segment ", name(), " is run by its model's own forward");
}

TensorList CalledSegment::backward_input(std::unique_ptr<Saved> /*saved*/,
                                         const TensorList& /*output_gradients*/,
                                         const TensorList& /*parameters*/,
                                         std::unique_ptr<Saved>* /*rest*/) {
  TORCH_CHECK(false, "segment ", name(), " is run by its model's own forward");
}

void CalledSegment::backward_weight(std::unique_ptr<Saved> /*rest*/,
                                    const TensorList& /*parameters*/) {
  TORCH_CHECK(false, "segment ", name(), " is run by its model's own forward");
}

Flops CalledSegment::flops(const TensorList& /*inputs*/,
                           const TensorList& /*parameters*/) const {
  return {};
}

}  // namespace torchtitan::nn
