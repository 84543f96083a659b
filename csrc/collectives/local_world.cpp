#include "collectives/local_world.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <thread>
#include <tuple>

#include "collectives/backend.h"
#include "collectives/local_execute.h"

namespace torchtitan::collectives {

namespace {

// Where ranks meet: a collective of all, or one direction between two of them.
struct Channel {
  int64_t from = -1;
  int64_t to = -1;
  int64_t tag = 0;
  auto operator<=>(const Channel&) const = default;
};

// One operation and the ranks that have started it.
struct Meeting {
  std::vector<std::optional<Operation>>
      started;  // by seat; a sender sits before its receiver
  int64_t num_started = 0;
  bool done = false;
  std::vector<c10::Event> ready;     // when the inputs of device tensors are written
  std::optional<c10::Event> result;  // when their outputs are
};

struct Room {
  std::string name;
  std::vector<int64_t> ranks;
  std::map<std::pair<Channel, int64_t>, int64_t> next;  // (channel, seat) -> number
  std::map<std::pair<Channel, int64_t>, std::shared_ptr<Meeting>> open;
};

std::optional<c10::Event> record_event(const Operation& operation) {
  const at::Tensor& tensor = operation.out.defined() ? operation.out : operation.in;
  if (!tensor.defined() || tensor.is_cpu() || tensor.is_meta()) return std::nullopt;
  const c10::impl::VirtualGuardImpl device(tensor.device().type());
  c10::Event event(tensor.device().type());
  event.record(device.getStream(tensor.device()));
  return event;
}

// The current stream of the event's device waits; the host does not.
void follow(const c10::Event& event) {
  const c10::impl::VirtualGuardImpl device(event.device_type());
  event.block(device.getStream(device.getDevice()));
}

void execute(Meeting& meeting) {
  for (const c10::Event& event : meeting.ready) follow(event);
  std::vector<Operation> operations;
  for (auto& operation : meeting.started) operations.push_back(std::move(*operation));
  const Operation& first = operations.front();
  if (first.verb == Verb::kSend) {
    operations.back().out.view(-1).copy_(first.in.view(-1));
  } else if (first.verb != Verb::kBarrier) {
    execute_collective(operations);
  }
  meeting.result = record_event(operations.back());
}

void check_same(const Operation& mine, int64_t my_rank, const Operation& theirs,
                int64_t their_rank) {
  const bool pair = mine.verb == Verb::kSend || mine.verb == Verb::kRecv;
  Operation expected = theirs;
  if (pair) expected.verb = mine.verb;
  TORCH_CHECK_VALUE(describe(mine) == describe(expected), "rank ", my_rank, " started ",
                    describe(mine), ", but rank ", their_rank, " started ",
                    describe(theirs));
}

std::string join(const std::vector<int64_t>& ranks) {
  std::ostringstream text;
  text << (ranks.size() == 1 ? "rank " : "ranks ");
  for (size_t i = 0; i < ranks.size(); ++i) text << (i ? ", " : "") << ranks[i];
  return text.str();
}

}  // namespace

struct LocalWorld::State {
  int64_t size;
  std::mutex mutex;  // of all that follows
  std::chrono::milliseconds timeout;
  std::set<int64_t> patient;
  std::condition_variable changed;
  std::exception_ptr cause;
  std::map<std::pair<std::string, std::vector<int64_t>>, std::shared_ptr<Room>> rooms;

  void abort(std::exception_ptr error) {
    const std::scoped_lock lock(mutex);
    if (!cause) cause = std::move(error);
    changed.notify_all();
  }
};

namespace {

class LocalWork : public Work {
 public:
  LocalWork(std::shared_ptr<LocalWorld::State> world, std::shared_ptr<Room> room,
            std::shared_ptr<Meeting> meeting, int64_t rank, std::vector<int64_t> seats,
            std::string what)
      : world_(std::move(world)), room_(std::move(room)), meeting_(std::move(meeting)),
        rank_(rank), seats_(std::move(seats)), what_(std::move(what)) {}

  bool completed() override {
    const std::scoped_lock lock(world_->mutex);
    return meeting_->done || world_->cause;
  }

  void wait() override {
    std::unique_lock lock(world_->mutex);
    const auto ended = [this] { return meeting_->done || world_->cause; };
    const std::chrono::milliseconds timeout = world_->timeout;
    while (!world_->changed.wait_for(lock, timeout, ended)) {
      // Once all have started a copy is being made, however long it takes.
      if (all_started() || world_->patient.contains(room_->ranks[rank_])) continue;
      world_->cause = std::make_exception_ptr(CollectiveError(late(timeout)));
      world_->changed.notify_all();
    }
    if (!meeting_->done) std::rethrow_exception(world_->cause);
    if (meeting_->result) follow(*meeting_->result);
  }

 private:
  // Under the lock, as is late().
  bool all_started() const {
    return meeting_->num_started == static_cast<int64_t>(seats_.size());
  }

  std::string late(std::chrono::milliseconds timeout) const {
    std::vector<int64_t> missing;
    for (size_t seat = 0; seat < seats_.size(); ++seat) {
      if (!meeting_->started[seat]) missing.push_back(room_->ranks[seats_[seat]]);
    }
    const double seconds = std::chrono::duration<double>(timeout).count();
    std::ostringstream text;
    text << join(missing) << " did not start " << what_ << " of group '" << room_->name
         << "' (" << join(room_->ranks) << ") within " << seconds << " s";
    return text.str();
  }

  std::shared_ptr<LocalWorld::State> world_;
  std::shared_ptr<Room> room_;
  std::shared_ptr<Meeting> meeting_;
  int64_t rank_;                // who waits, and
  std::vector<int64_t> seats_;  // who meets, as members of the room
  std::string what_;
};

class LocalBackend : public Backend {
 public:
  LocalBackend(std::shared_ptr<LocalWorld::State> world, std::shared_ptr<Room> room,
               int64_t rank)
      : world_(std::move(world)), room_(std::move(room)), rank_(rank) {}

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return static_cast<int64_t>(room_->ranks.size()); }

  std::shared_ptr<Work> start(Operation operation) override {
    Channel channel;
    std::vector<int64_t> seats;
    if (operation.verb == Verb::kSend || operation.verb == Verb::kRecv) {
      const bool sends = operation.verb == Verb::kSend;
      seats = sends ? std::vector{rank_, operation.peer}
                    : std::vector{operation.peer, rank_};
      channel = {seats[0], seats[1], operation.tag};
    } else {
      for (int64_t member = 0; member < size(); ++member) seats.push_back(member);
    }
    std::string what = describe(operation);
    std::shared_ptr<Meeting> meeting;
    try {
      meeting = join_meeting(channel, seats, std::move(operation));
    } catch (...) {
      world_->abort(std::current_exception());
      throw;
    }
    return std::make_shared<LocalWork>(world_, room_, std::move(meeting), rank_,
                                       std::move(seats), std::move(what));
  }

 private:
  std::shared_ptr<Meeting> join_meeting(const Channel& channel,
                                        const std::vector<int64_t>& seats,
                                        Operation operation) {
    std::optional<c10::Event> ready = record_event(operation);
    std::unique_lock lock(world_->mutex);
    if (world_->cause) std::rethrow_exception(world_->cause);
    const auto seat = std::find(seats.begin(), seats.end(), rank_) - seats.begin();
    const int64_t number = room_->next[{channel, seat}]++;
    std::shared_ptr<Meeting>& open = room_->open[{channel, number}];
    if (!open) {
      open = std::make_shared<Meeting>();
      open->started.resize(seats.size());
    }
    const std::shared_ptr<Meeting> meeting = open;
    for (size_t other = 0; other < seats.size(); ++other) {
      if (!meeting->started[other]) continue;
      check_same(operation, room_->ranks[rank_], *meeting->started[other],
                 room_->ranks[seats[other]]);
      break;
    }
    meeting->started[seat] = std::move(operation);
    if (ready) meeting->ready.push_back(std::move(*ready));
    if (++meeting->num_started < static_cast<int64_t>(seats.size())) return meeting;
    room_->open.erase({channel, number});
    lock.unlock();
    execute(*meeting);
    lock.lock();
    meeting->done = true;
    world_->changed.notify_all();
    return meeting;
  }

  std::shared_ptr<LocalWorld::State> world_;
  std::shared_ptr<Room> room_;
  int64_t rank_;
};

}  // namespace

LocalWorld::LocalWorld(int64_t size, std::chrono::milliseconds timeout)
    : state_(std::make_shared<State>()) {
  TORCH_CHECK_VALUE(size > 0, "LocalWorld: size must be positive, but is ", size);
  state_->size = size;
  set_timeout(timeout);
}

void LocalWorld::set_timeout(std::chrono::milliseconds timeout) const {
  TORCH_CHECK_VALUE(timeout.count() > 0,
                    "LocalWorld: timeout must be positive, but is ", timeout.count(),
                    " ms");
  const std::scoped_lock lock(state_->mutex);
  state_->timeout = timeout;
}

void LocalWorld::set_patient(int64_t rank, bool patient) const {
  TORCH_CHECK_VALUE(rank >= 0 && rank < size(), "LocalWorld: rank ", rank,
                    " is not in a world of ", size());
  const std::scoped_lock lock(state_->mutex);
  if (patient) {
    state_->patient.insert(rank);
  } else {
    state_->patient.erase(rank);
  }
}

int64_t LocalWorld::size() const { return state_->size; }

Group LocalWorld::group(int64_t rank, std::string name) const {
  std::vector<int64_t> ranks;
  for (int64_t member = 0; member < size(); ++member) ranks.push_back(member);
  return group(rank, std::move(name), ranks);
}

Group LocalWorld::group(int64_t rank, std::string name,
                        const std::vector<int64_t>& ranks) const {
  for (size_t i = 0; i < ranks.size(); ++i) {
    TORCH_CHECK_VALUE(ranks[i] >= 0 && ranks[i] < size(), "LocalWorld: rank ", ranks[i],
                      " of group '", name, "' is not in a world of ", size());
    TORCH_CHECK_VALUE(std::count(ranks.begin(), ranks.end(), ranks[i]) == 1,
                      "LocalWorld: group '", name, "' lists rank ", ranks[i], " twice");
  }
  const auto found = std::find(ranks.begin(), ranks.end(), rank);
  TORCH_CHECK_VALUE(found != ranks.end(), "LocalWorld: rank ", rank,
                    " asks for group '", name, "' of ranks ", at::IntArrayRef(ranks));
  if (ranks.size() == 1) return Group(std::move(name));
  const std::scoped_lock lock(state_->mutex);
  std::shared_ptr<Room>& room = state_->rooms[{name, ranks}];
  if (!room) {
    room = std::make_shared<Room>();
    room->name = name;
    room->ranks = ranks;
  }
  return Group(std::move(name),
               std::make_shared<LocalBackend>(state_, room, found - ranks.begin()));
}

void LocalWorld::abort(std::exception_ptr cause) const {
  TORCH_CHECK_VALUE(cause != nullptr, "LocalWorld: abort needs a cause");
  state_->abort(std::move(cause));
}

void LocalWorld::run(const std::function<void(int64_t rank)>& body) const {
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size(); ++rank) {
    threads.emplace_back([this, &body, rank] {
      try {
        at::set_num_threads(1);
        body(rank);
      } catch (...) {
        abort(std::current_exception());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::scoped_lock lock(state_->mutex);
  if (state_->cause) std::rethrow_exception(state_->cause);
}

}  // namespace torchtitan::collectives
