// Messages between stages over the group of the axis "pp".
//
// Both directions between two ranks are channels, first in first out; a message has no
// name but its place in the channel. In the first run of a signature each activation is
// preceded by a header with its shapes (one per value: dtype and sizes), so its receive
// begins when it is waited for; afterwards receives begin when they are started.
// Gradients have the shapes of their activations.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "collectives/group.h"
#include "nn/stage_transport.h"

namespace torchtitan::parallel::pipeline {

class Transport final : public nn::StageTransport {
 public:
  //   stages  of this rank: their shapes and the values at their boundaries
  Transport(collectives::Group group, at::Device device,
            std::vector<int64_t> rank_of_stage, const nn::Stages& stages);

  void begin(const std::string& signature) override;
  void start_send(const plan::Action& start, Values values) override;
  void start_receive(const plan::Action& start) override;
  Values wait(const plan::Action& wait) override;

 private:
  // Of the values at a boundary, which is named by the stage behind it.
  struct Meta {
    at::ScalarType dtype;
    std::vector<int64_t> sizes;
  };
  using Shapes = std::map<int64_t, std::vector<Meta>>;

  struct Message {
    plan::Action start;
    int64_t peer;
    bool posted = false;
    std::vector<at::Tensor> tensors = {};
    std::vector<collectives::Handle> handles = {};
  };
  using Key = std::tuple<plan::ActionKind, int64_t, int64_t>;

  static bool is_activation(const plan::Action& start);
  // Whether a value of this kind is part of the message: integers have no gradient.
  static bool travels(const plan::Action& start, const Meta& meta);
  // The stage behind the boundary that a message crosses.
  static int64_t boundary(const plan::Action& start);
  int64_t peer(const plan::Action& start) const;
  void send_header(Message& message, int64_t stage);
  void receive_header(const Message& message, int64_t stage);
  void post_receive(Message& message);

  collectives::Group group_;
  at::Device device_;
  std::vector<int64_t> rank_of_stage_;
  std::map<int64_t, std::vector<std::string>> names_;  // by boundary
  std::map<std::string, Shapes> known_;
  Shapes* shapes_ = nullptr;  // of the run's signature
  std::map<Key, Message> under_way_;
  // Started and not posted, in the order of the channel from each peer.
  std::map<int64_t, std::deque<Key>> waiting_;
};

}  // namespace torchtitan::parallel::pipeline
