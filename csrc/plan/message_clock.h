// When the messages between the ranks of a pipeline pass.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "plan/program.h"
#include "plan/simulate.h"

namespace torchtitan::plan {

// A channel for each pair of ranks and direction. A message passes when its send and
// its receive have started and the messages before it in its channel have passed.
class MessageClock {
 public:
  // Programs of all ranks. Throws std::invalid_argument, with `caller` in front, for a
  // receive of what nobody sends.
  MessageClock(std::span<const Program> programs, const char* caller);

  // A start of a send or receive, at the time `now`; the message takes `seconds` of the
  // send's.
  void start(const Action& transfer, double now, double seconds);

  // When the message of `transfer`, a start or the Wait for it, passes: known once both
  // ends have started.
  std::optional<Span> passed(const Action& transfer) const;

 private:
  // What is sent over the border after `stage`, forward or back.
  struct Border {
    bool forward;
    int64_t stage;
    int64_t microbatch;

    auto operator<=>(const Border&) const = default;
  };

  struct Message {
    std::optional<double> sent;      // when its send has started
    std::optional<double> received;  // when its receive has
    double seconds = 0.0;
    std::optional<Span> passed;
  };

  // In the order of the receives.
  struct Channel {
    std::vector<Border> messages;
    size_t num_passed = 0;
    double free_at = 0.0;
  };

  static Border border_of(ActionKind transfer, const Action& action);
  void pass_messages(Channel& channel);

  std::map<Border, Message> messages_;
  std::map<std::pair<size_t, size_t>, Channel> channels_;  // by sender and receiver
  std::map<Border, Channel*> channel_of_;
};

}  // namespace torchtitan::plan
