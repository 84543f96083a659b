#include "nn/split_backward.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace torchtitan::nn {
namespace {

namespace autograd = torch::autograd;
using NodePointer = c10::intrusive_ptr<autograd::Node>;
using TensorList = std::vector<at::Tensor>;

// The gradients that arrive at a node, before any hook of the user's sees them: those
// hooks run in both halves.
struct Arrived {
  TensorList gradients;
  bool is_open = true;
};

class Capture final : public autograd::FunctionPreHook {
 public:
  explicit Capture(std::shared_ptr<Arrived> arrived) : arrived_(std::move(arrived)) {}

  autograd::variable_list operator()(
      const autograd::variable_list& gradients) override {
    if (arrived_->is_open) arrived_->gradients = gradients;
    return gradients;
  }

 private:
  std::shared_ptr<Arrived> arrived_;
};

bool is_leaf(const autograd::Node* node) {
  return dynamic_cast<const autograd::AccumulateGrad*>(node) != nullptr;
}

}  // namespace

struct RestOfBackward::Node {
  NodePointer node;  // null: the roots below are those of the graph
  autograd::edge_list roots;
  std::shared_ptr<Arrived> arrived;
  autograd::edge_list leaves;
  // Whether another one runs some of the same nodes.
  bool shares = false;
};

namespace {

using Part = RestOfBackward::Node;

class Walk {
 public:
  Walk(const autograd::edge_list& roots, const TensorList& inputs) {
    for (const auto& input : inputs) {
      inputs_.push_back(autograd::impl::gradient_edge(input).function);
      reaches_[inputs_.back().get()] = true;
    }
    for (const auto& root : roots) visit(root.function.get());
  }

  bool reaches_input(const autograd::Node* node) const { return reaches_.at(node); }

  // Nodes that an input's gradient passes, without the inputs' own.
  std::vector<autograd::Node*> passed() const {
    std::vector<autograd::Node*> nodes;
    for (auto* node : order_) {
      if (reaches_.at(node)) nodes.push_back(node);
    }
    return nodes;
  }

  // The leaves behind edges that lead to no input.
  void collect(const autograd::edge_list& edges, Part& part) {
    std::unordered_set<autograd::Node*> seen;
    std::vector<autograd::Node*> stack;
    const auto push = [&](const autograd::edge_list& next) {
      for (const auto& edge : next) {
        auto* node = edge.function.get();
        if (node == nullptr || reaches_.at(node) || !seen.insert(node).second) continue;
        stack.push_back(node);
      }
    };
    push(edges);
    while (!stack.empty()) {
      auto* node = stack.back();
      stack.pop_back();
      if (is_leaf(node)) {
        part.leaves.emplace_back(node->getptr(), 0);
        continue;
      }
      if (!others_.insert(node).second) part.shares = true;
      push(node->next_edges());
    }
  }

 private:
  void visit(autograd::Node* root) {
    std::vector<std::pair<autograd::Node*, size_t>> stack;
    const auto enter = [&](autograd::Node* node) {
      if (node == nullptr || !reaches_.emplace(node, false).second) return;
      order_.push_back(node);
      stack.emplace_back(node, 0);
    };
    enter(root);
    while (!stack.empty()) {
      auto* node = stack.back().first;
      const size_t next = stack.back().second++;
      if (next < node->num_outputs()) {
        enter(node->next_edge(next).function.get());
        continue;
      }
      stack.pop_back();
      for (const auto& edge : node->next_edges()) {
        if (edge.function && reaches_.at(edge.function.get())) reaches_[node] = true;
      }
    }
  }

  std::vector<NodePointer> inputs_;  // of leaves: else nobody holds them
  std::unordered_map<const autograd::Node*, bool> reaches_;
  std::vector<autograd::Node*> order_;
  std::unordered_set<autograd::Node*> others_;  // that lead to no input
};

}  // namespace

RestOfBackward::RestOfBackward(std::vector<Node> nodes) : nodes_(std::move(nodes)) {}
RestOfBackward::~RestOfBackward() = default;

void RestOfBackward::run() {
  for (auto& part : nodes_) {
    autograd::edge_list roots;
    TensorList gradients;
    auto& arrived = part.arrived->gradients;
    for (size_t i = 0; i < arrived.size(); ++i) {
      if (!arrived[i].defined()) continue;
      roots.push_back(part.node ? autograd::Edge(part.node, static_cast<uint32_t>(i))
                                : part.roots[i]);
      gradients.push_back(std::move(arrived[i]));
    }
    if (!roots.empty()) {
      autograd::Engine::get_default_engine().execute(roots, gradients, part.shares,
                                                     /*create_graph=*/false,
                                                     /*accumulate_grad=*/true,
                                                     part.leaves);
    }
    part = Node{};
  }
}

TensorList split_backward(const autograd::edge_list& roots,
                          const TensorList& output_gradients, const TensorList& inputs,
                          std::unique_ptr<RestOfBackward>* rest) {
  Walk walk(roots, inputs);
  std::vector<Part> parts;
  for (auto* node : walk.passed()) {
    Part part;
    walk.collect(node->next_edges(), part);
    if (part.leaves.empty()) continue;
    part.node = node->getptr();
    part.arrived = std::make_shared<Arrived>();
    auto& hooks = node->tensor_pre_hooks();
    hooks.insert(hooks.begin(), std::make_unique<Capture>(part.arrived));
    parts.push_back(std::move(part));
  }
  // As the engine would.
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return a.node->sequence_nr() > b.node->sequence_nr();
  });
  // Outputs that depend on no input: as if they were edges of one node before them.
  Part whole;
  walk.collect(roots, whole);
  if (!whole.leaves.empty()) {
    whole.roots = roots;
    whole.arrived = std::make_shared<Arrived>();
    whole.arrived->gradients = output_gradients;
    for (size_t i = 0; i < roots.size(); ++i) {
      if (walk.reaches_input(roots[i].function.get())) {
        whole.arrived->gradients[i] = at::Tensor();
      }
    }
    parts.insert(parts.begin(), std::move(whole));
  }
  const bool any_shares = std::any_of(parts.begin(), parts.end(),
                                      [](const Part& part) { return part.shares; });
  for (auto& part : parts) part.shares = any_shares;

  autograd::edge_list roots_of_inputs, input_edges;
  TensorList gradients;
  for (size_t i = 0; i < roots.size(); ++i) {
    if (!walk.reaches_input(roots[i].function.get())) continue;
    roots_of_inputs.push_back(roots[i]);
    gradients.push_back(output_gradients[i]);
  }
  for (const auto& input : inputs) {
    input_edges.push_back(autograd::impl::gradient_edge(input));
  }
  TensorList result(inputs.size());
  if (!roots_of_inputs.empty()) {
    result = autograd::Engine::get_default_engine().execute(
        roots_of_inputs, gradients, /*keep_graph=*/true, /*create_graph=*/false,
        /*accumulate_grad=*/false, input_edges);
  }
  for (const auto& part : parts) {
    part.arrived->is_open = false;
    if (!part.node) continue;
    // Cut, so that the second half cannot go on to leaves that it reaches both ways.
    for (auto& edge : part.node->next_edges()) {
      if (edge.is_valid() && walk.reaches_input(edge.function.get())) edge = {};
    }
  }
  rest->reset();
  if (!parts.empty()) *rest = std::make_unique<RestOfBackward>(std::move(parts));
  return result;
}

}  // namespace torchtitan::nn
