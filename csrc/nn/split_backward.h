// The backward of one graph in two halves, for any graph, without doing anything twice
// (zero-bubble pipelines, Qi et al. 2024): first the gradients of some leaves, later
// those of all others.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <memory>
#include <vector>

namespace torchtitan::nn {

// What the first half left.
class RestOfBackward {
 public:
  struct Node;

  explicit RestOfBackward(std::vector<Node> nodes);
  RestOfBackward(const RestOfBackward&) = delete;
  RestOfBackward& operator=(const RestOfBackward&) = delete;
  ~RestOfBackward();

  // Adds the gradients of the other leaves into their .grad. Once.
  void run();

 private:
  std::vector<Node> nodes_;
};

// Gradients of `inputs`, leaves that require grad, from those of the outputs, of whose
// graph `roots` are the edges; undefined where there is none. The .grad of no leaf
// changes. The graph is of no other use afterwards; what the rest does not need of it
// dies with the roots.
//
// The rest keeps the gradients that arrive at each node with a path to an input and one
// to another leaf, and what these nodes have saved; the tensors given here must not
// change until it ran. In it each such node runs again for the other leaves only.
// So a function of one's own in the graph does work twice unless it asks which of its
// gradients are needed, and nodes between several such nodes and one leaf that they
// share run once for each of them. A leaf that is used in several places gets their
// gradients one by one, not their sum.
std::vector<at::Tensor> split_backward(const std::vector<torch::autograd::Edge>& roots,
                                       const std::vector<at::Tensor>& output_gradients,
                                       const std::vector<at::Tensor>& inputs,
                                       std::unique_ptr<RestOfBackward>* rest);

}  // namespace torchtitan::nn
