#include "durability/job.h"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <random>

#include "base/errors.h"
#include "durability/checkpoint.h"
#include "storage/checksum.h"
#include "storage/fault.h"

namespace torchtitan::durability {
namespace {

using namespace storage;

constexpr size_t kMostDigits = size_t{3} * 64;  // of the hashes of a file's blocks
constexpr int kRankLost = 75;
constexpr int kBroken = 70;

struct Command {
  enum Kind : int64_t { kLoad, kSave };
  Kind kind;
  int64_t step;
  std::array<char, 24> id;  // of a save
};

struct Reply {
  enum Kind : int64_t { kDone, kFailed, kWrong };
  Kind kind;
  int64_t size_bytes;
  std::array<char, kMostDigits + 1> blocks;  // FileRecord::blocks
};

struct RankLost {};

template <typename Message>
void send_message(int socket, const Message& message) {
  if (::send(socket, &message, sizeof(message), MSG_NOSIGNAL) != sizeof(message)) {
    throw RankLost();
  }
}

template <typename Message>
Message receive_message(int socket) {
  Message message;
  if (::recv(socket, &message, sizeof(message), 0) != sizeof(message)) {
    throw RankLost();
  }
  return message;
}

template <size_t size>
std::array<char, size> to_array(const std::string& text) {
  std::array<char, size> array{};
  std::copy_n(text.begin(), std::min(text.size(), size - 1), array.begin());
  return array;
}

std::string step_path(const JobPlan& plan, int64_t step) {
  return base::message(plan.folder, "/step-", step);
}

// What every rank does of a command.
Reply answer(const JobPlan& plan, int64_t rank, const Command& command) {
  Reply reply{.kind = Reply::kDone, .size_bytes = 0, .blocks = {}};
  try {
    if (command.kind == Command::kSave) {
      const std::string staging =
          base::message(step_path(plan, command.step), ".tmp-", command.id.data());
      const FileRecord record = write_part(staging, rank, command.step);
      reply.size_bytes = record.size_bytes;
      reply.blocks = to_array<kMostDigits + 1>(record.blocks);
      return reply;
    }
    const FoundCheckpoint found = inspect_checkpoint(step_path(plan, command.step));
    if (!found.manifest) {
      reply.kind = Reply::kFailed;
    } else if (!load_part(found.path, *found.manifest, rank)) {
      reply.kind = Reply::kWrong;
    }
  } catch (const FileError&) {
    reply.kind = Reply::kFailed;
  } catch (const std::invalid_argument&) {  // another SHA-256
    reply.kind = Reply::kFailed;
  }
  return reply;
}

void set_fault_of(const JobPlan& plan, int64_t rank) {
  set_fault(plan.fault_rank == rank ? plan.fault : "");
}

[[noreturn]] void follow(const JobPlan& plan, int64_t rank, int socket) {
  set_fault_of(plan, rank);
  try {
    while (true) {
      send_message(socket, answer(plan, rank, receive_message<Command>(socket)));
    }
  } catch (const RankLost&) {  // the first rank has ended
  }
  ::_exit(0);
}

class Leader {
 public:
  Leader(const JobPlan& plan, int events) : plan_(plan), events_(events) {
    for (int64_t rank = 1; rank < kNumRanks; ++rank) start(rank);
    set_fault_of(plan, 0);
  }

  void run() {
    std::mt19937_64 random(plan_.seed);
    std::optional<FoundCheckpoint> from = load();
    int64_t step = from ? from->step : 0;
    std::string parent = from ? from->manifest->id : "";
    int64_t sequence = from ? from->manifest->sequence : 0;
    for (int64_t i = 0; i < plan_.num_saves; ++i) {
      char id[17];
      std::snprintf(id, sizeof(id), "%016llx",
                    static_cast<unsigned long long>(random()));
      ++step;
      const std::optional<int64_t> saved = save(step, id, parent, sequence);
      tell(saved ? Event::kAcknowledged : Event::kFailedSave, saved.value_or(0));
      if (!saved) continue;
      parent = id;
      sequence = *saved;
      try {
        purge(plan_.folder, kKeepLatest, parent, {});
      } catch (const FileError&) {  // old ones stay until the next time
      }
    }
  }

 private:
  void start(int64_t rank) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
      ::_exit(kBroken);
    }
    const pid_t pid = ::fork();
    if (pid < 0) ::_exit(kBroken);
    if (pid == 0) {
      // Held by nobody else, a socket tells at once that its other end has died.
      for (const int socket : sockets_) ::close(socket);
      ::close(ends[0]);
      ::close(events_);
      follow(plan_, rank, ends[1]);
    }
    ::close(ends[1]);
    sockets_.push_back(ends[0]);
    tell(Event::kStarted, rank, pid);
  }

  void tell(Event::Kind kind, int64_t number, int64_t pid = 0) {
    const Event event{kind, number, pid};
    if (::write(events_, &event, sizeof(event)) != sizeof(event)) ::_exit(kBroken);
  }

  std::vector<Reply> on_all(const Command& command) {
    for (const int socket : sockets_) send_message(socket, command);
    std::vector<Reply> replies{answer(plan_, 0, command)};
    for (const int socket : sockets_) replies.push_back(receive_message<Reply>(socket));
    return replies;
  }

  // The newest that all ranks can read, or the one before it.
  std::optional<FoundCheckpoint> load() {
    int64_t to_skip = plan_.goes_back ? 1 : 0;
    std::optional<FoundCheckpoint> from;
    for (const auto& found : list_checkpoints(plan_.folder).checkpoints) {
      if (!found.manifest) continue;
      const std::vector<Reply> replies =
          on_all({.kind = Command::kLoad, .step = found.step, .id = {}});
      bool is_good = true;
      for (const Reply& reply : replies) {
        if (reply.kind == Reply::kWrong) tell(Event::kWrong, found.step);
        is_good = is_good && reply.kind == Reply::kDone;
      }
      if (!is_good) continue;
      from = found;
      if (to_skip-- == 0) break;
    }
    tell(Event::kLoaded, from ? from->manifest->sequence : 0);
    return from;
  }

  // The sequence number; nullopt if a rank's system has refused.
  std::optional<int64_t> save(int64_t step, const std::string& id,
                              const std::string& parent, int64_t last) {
    std::optional<int64_t> sequence;
    try {
      clean_up(plan_.folder);
      for (const auto& found : list_checkpoints(plan_.folder).checkpoints) {
        if (found.manifest) last = std::max(last, found.manifest->sequence);
      }
      create_staging(plan_.folder, step, id);
      const std::vector<Reply> replies =
          on_all({.kind = Command::kSave, .step = step, .id = to_array<24>(id)});
      std::vector<FileRecord> files;
      for (int64_t rank = 0; rank < kNumRanks; ++rank) {
        const Reply& reply = replies[static_cast<size_t>(rank)];
        if (reply.kind != Reply::kDone) throw FileError(EIO, id, "a rank has failed");
        const std::string blocks = reply.blocks.data();
        files.push_back({.name = base::message("rank-", rank, ".safetensors"),
                         .size_bytes = reply.size_bytes,
                         .sha256 = sha256(std::as_bytes(std::span(blocks))),
                         .blocks = blocks});
      }
      commit(plan_.folder, manifest_of(step, id, parent, last + 1, files), {});
      sequence = last + 1;
    } catch (const FileError&) {
      discard(step, id);
    } catch (const RankLost&) {
      discard(step, id);
      throw;
    }
    return sequence;
  }

  void discard(int64_t step, const std::string& id) {
    try {
      discard_staging(plan_.folder, step, id);
    } catch (const FileError&) {  // the next save cleans up
    }
  }

  const JobPlan& plan_;
  int events_;
  std::vector<int> sockets_;  // to ranks 1, 2, ..
};

}  // namespace

void run_job(const JobPlan& plan, int events) {
  try {
    Leader(plan, events).run();
  } catch (const RankLost&) {
    ::_exit(kRankLost);
  } catch (const FileError&) {  // while loading: the launcher starts the job again
    ::_exit(kRankLost);
  }
  ::_exit(0);
}

}  // namespace torchtitan::durability
