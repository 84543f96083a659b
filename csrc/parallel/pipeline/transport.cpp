#include "parallel/pipeline/transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

namespace torchtitan::parallel::pipeline {
namespace {

using plan::ActionKind;

constexpr int64_t kMaxDims = 8;
constexpr int64_t kHeaderSize = 2 + kMaxDims;  // dtype, number of dims, sizes

bool is_send(const plan::Action& start) {
  return start.kind == ActionKind::kSendActivation ||
         start.kind == ActionKind::kSendGradient;
}

}  // namespace

Transport::Transport(collectives::Group group, at::Device device,
                     std::vector<int64_t> rank_of_stage, const nn::Stages& stages)
    : group_(std::move(group)), device_(device),
      rank_of_stage_(std::move(rank_of_stage)) {
  for (size_t i = 0; i < stages.shapes.size(); ++i) {
    names_[stages.shapes[i].index] = stages.inputs[i];
    names_[stages.shapes[i].index + 1] = stages.outputs[i];
  }
}

void Transport::begin(const std::string& signature) {
  shapes_ = &known_[signature];
  under_way_.clear();
  waiting_.clear();
}

bool Transport::is_activation(const plan::Action& start) {
  return start.kind == ActionKind::kSendActivation ||
         start.kind == ActionKind::kReceiveActivation;
}

bool Transport::travels(const plan::Action& start, const Meta& meta) {
  return is_activation(start) || at::isFloatingType(meta.dtype);
}

int64_t Transport::boundary(const plan::Action& start) {
  const bool behind = start.kind == ActionKind::kReceiveActivation ||
                      start.kind == ActionKind::kSendGradient;
  return behind ? start.stage : start.stage + 1;
}

int64_t Transport::peer(const plan::Action& start) const {
  const int64_t stage =
      boundary(start) == start.stage ? start.stage - 1 : start.stage + 1;
  return rank_of_stage_.at(static_cast<size_t>(stage));
}

void Transport::start_send(const plan::Action& start, Values values) {
  const int64_t stage = boundary(start);
  Message message{.start = start, .peer = peer(start), .posted = true};
  const auto& names = names_.at(stage);
  const auto known = shapes_->find(stage);
  TORCH_CHECK(is_activation(start) || known != shapes_->end(), plan::to_string(start),
              ": no activation came this way");
  for (size_t i = 0; i < names.size(); ++i) {
    auto value = values[names[i]];
    if (!is_activation(start) && !travels(start, known->second[i])) continue;
    if (!value.defined()) {
      TORCH_CHECK(!is_activation(start), plan::to_string(start), ": the value '",
                  names[i], "' is missing");
      const auto& meta = known->second[i];
      value = at::zeros(meta.sizes, at::TensorOptions(device_).dtype(meta.dtype));
    }
    if (is_activation(start) && known != shapes_->end()) {
      const auto& meta = known->second[i];
      TORCH_CHECK(value.sizes() == meta.sizes && value.scalar_type() == meta.dtype,
                  plan::to_string(start), ": '", names[i], "' has shape ",
                  value.sizes(), " (", value.scalar_type(), "), but that of the first ",
                  "microbatch had ", at::IntArrayRef(meta.sizes), " (", meta.dtype,
                  "); what passes between stages must have one shape");
    }
    message.tensors.push_back(value.contiguous());
  }
  if (is_activation(start) && known == shapes_->end()) send_header(message, stage);
  for (const auto& tensor : message.tensors) {
    message.handles.push_back(group_.send(tensor, message.peer));
  }
  under_way_[{start.kind, start.stage, start.microbatch}] = std::move(message);
}

void Transport::start_receive(const plan::Action& start) {
  const Key key{start.kind, start.stage, start.microbatch};
  auto& message = under_way_[key] = Message{.start = start, .peer = peer(start)};
  auto& waiting = waiting_[message.peer];
  if (waiting.empty() && shapes_->contains(boundary(start))) {
    post_receive(message);
  } else {
    waiting.push_back(key);
  }
}

nn::StageTransport::Values Transport::wait(const plan::Action& wait) {
  const Key key{wait.waits_for, wait.stage, wait.microbatch};
  const auto found = under_way_.find(key);
  TORCH_CHECK(found != under_way_.end(), plan::to_string(wait),
              ": nothing was started that this waits for");
  // Those before it in its channel come first.
  auto& waiting = waiting_[found->second.peer];
  while (!found->second.posted) {
    auto& first = under_way_.at(waiting.front());
    const int64_t stage = boundary(first.start);
    if (!shapes_->contains(stage)) receive_header(first, stage);
    post_receive(first);
    waiting.pop_front();
  }
  for (const auto& handle : found->second.handles) handle.wait();
  Values values;
  if (!is_send(found->second.start)) {
    const int64_t stage = boundary(found->second.start);
    auto tensor = found->second.tensors.begin();
    for (size_t i = 0; i < names_[stage].size(); ++i) {
      if (!travels(found->second.start, shapes_->at(stage)[i])) continue;
      values[names_[stage][i]] = std::move(*tensor++);
    }
  }
  under_way_.erase(found);
  return values;
}

void Transport::post_receive(Message& message) {
  for (const auto& meta : shapes_->at(boundary(message.start))) {
    if (!travels(message.start, meta)) continue;
    auto tensor = at::empty(meta.sizes, at::TensorOptions(device_).dtype(meta.dtype));
    message.handles.push_back(group_.recv(tensor, message.peer));
    message.tensors.push_back(std::move(tensor));
  }
  message.posted = true;
}

void Transport::send_header(Message& message, int64_t stage) {
  auto& metas = (*shapes_)[stage];
  std::vector<int64_t> header;
  for (const auto& tensor : message.tensors) {
    TORCH_CHECK_VALUE(tensor.dim() <= kMaxDims, plan::to_string(message.start),
                      ": expected at most ", kMaxDims, " dims, found shape ",
                      tensor.sizes());
    metas.push_back({tensor.scalar_type(), tensor.sizes().vec()});
    header.push_back(static_cast<int64_t>(tensor.scalar_type()));
    header.push_back(tensor.dim());
    header.insert(header.end(), tensor.sizes().begin(), tensor.sizes().end());
    header.resize(metas.size() * kHeaderSize, 0);
  }
  auto tensor = at::tensor(header, at::kLong).to(device_);
  message.handles.push_back(group_.send(tensor, message.peer));
}

void Transport::receive_header(const Message& message, int64_t stage) {
  const auto num_values = static_cast<int64_t>(names_.at(stage).size());
  auto tensor = at::empty({num_values * kHeaderSize},
                          at::TensorOptions(device_).dtype(at::kLong));
  group_.recv(tensor, message.peer).wait();
  tensor = tensor.cpu();
  const auto* header = tensor.const_data_ptr<int64_t>();
  auto& metas = (*shapes_)[stage];
  for (int64_t i = 0; i < num_values; ++i, header += kHeaderSize) {
    metas.push_back({static_cast<at::ScalarType>(header[0]),
                     std::vector<int64_t>(header + 2, header + 2 + header[1])});
  }
}

}  // namespace torchtitan::parallel::pipeline
