#include "plan/message_clock.h"

#include <algorithm>

#include "base/errors.h"

namespace torchtitan::plan {
namespace {

bool is_send(ActionKind kind) {
  return kind == ActionKind::kSendActivation || kind == ActionKind::kSendGradient;
}

}  // namespace

MessageClock::MessageClock(std::span<const Program> programs, const char* caller) {
  // Both ends know the border that a message crosses, without the ranks.
  std::map<Border, size_t> sender;
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    for (const Action& action : programs[rank]) {
      if (is_send(action.kind)) sender[border_of(action.kind, action)] = rank;
    }
  }
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    for (const Action& action : programs[rank]) {
      if (!is_transfer(action) || is_send(action.kind)) continue;
      const Border border = border_of(action.kind, action);
      const auto from = sender.find(border);
      base::check_value(from != sender.end(), caller, ": rank ", rank,
                        " waits for ever for ", to_string(action),
                        ", which nobody sends");
      Channel& channel = channels_[{from->second, rank}];
      channel.messages.push_back(border);
      channel_of_[border] = &channel;
    }
  }
}

MessageClock::Border MessageClock::border_of(ActionKind transfer,
                                             const Action& action) {
  switch (transfer) {
    case ActionKind::kSendActivation: return {true, action.stage, action.microbatch};
    case ActionKind::kReceiveActivation:
      return {true, action.stage - 1, action.microbatch};
    case ActionKind::kSendGradient: return {false, action.stage - 1, action.microbatch};
    default: return {false, action.stage, action.microbatch};
  }
}

void MessageClock::start(const Action& transfer, double now, double seconds) {
  const Border border = border_of(transfer.kind, transfer);
  Message& message = messages_[border];
  if (is_send(transfer.kind)) {
    message.sent = now;
    message.seconds = seconds;
  } else {
    message.received = now;
  }
  // A message that nobody receives has no channel, and never passes.
  if (const auto found = channel_of_.find(border); found != channel_of_.end()) {
    pass_messages(*found->second);
  }
}

std::optional<Span> MessageClock::passed(const Action& transfer) const {
  const bool is_wait = transfer.kind == ActionKind::kWait;
  const auto found =
      messages_.find(border_of(is_wait ? transfer.waits_for : transfer.kind, transfer));
  return found == messages_.end() ? std::nullopt : found->second.passed;
}

void MessageClock::pass_messages(Channel& channel) {
  while (channel.num_passed < channel.messages.size()) {
    Message& message = messages_[channel.messages[channel.num_passed]];
    if (!message.sent || !message.received) return;
    const double begin = std::max({*message.sent, *message.received, channel.free_at});
    message.passed = Span{begin, begin + message.seconds};
    channel.free_at = begin + message.seconds;
    ++channel.num_passed;
  }
}

}  // namespace torchtitan::plan
