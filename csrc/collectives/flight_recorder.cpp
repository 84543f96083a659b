#include "collectives/flight_recorder.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/json.h"

namespace torchtitan::collectives {

namespace {

using base::Json;
using namespace std::chrono_literals;

// A disk that does not answer may be why the run ends.
constexpr auto kLongestWrite = 5s;

class TracedWork : public Work {
 public:
  TracedWork(std::shared_ptr<Work> work, std::shared_ptr<FlightRecorder> recorder,
             int64_t number)
      : work_(std::move(work)), recorder_(std::move(recorder)), number_(number) {}

  bool completed() override { return work_->completed(); }

  void wait() override {
    recorder_->waiting(number_);
    try {
      work_->wait();
    } catch (...) {
      recorder_->ended(number_, false);
      throw;
    }
    recorder_->ended(number_, true);
  }

 private:
  std::shared_ptr<Work> work_;
  std::shared_ptr<FlightRecorder> recorder_;
  int64_t number_;
};

class TracedBackend : public Backend {
 public:
  TracedBackend(const Group& group, std::shared_ptr<FlightRecorder> recorder,
                std::vector<int64_t> ranks)
      : inner_(group.backend()), recorder_(std::move(recorder)),
        group_(recorder_->add_group(group.name(), std::move(ranks))) {}

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }

  std::shared_ptr<Work> start(Operation operation) override {
    const int64_t number = recorder_->start(group_, operation);
    try {
      auto work = inner_->start(std::move(operation));
      if (work) {
        return std::make_shared<TracedWork>(std::move(work), recorder_, number);
      }
    } catch (...) {
      recorder_->ended(number, false);
      throw;
    }
    recorder_->ended(number, true);
    return nullptr;
  }

 private:
  std::shared_ptr<Backend> inner_;
  std::shared_ptr<FlightRecorder> recorder_;
  int64_t group_;
};

bool is_pair(Verb verb) { return verb == Verb::kSend || verb == Verb::kRecv; }

bool has_peer(Verb verb) { return is_pair(verb) || verb == Verb::kBroadcast; }

const char* reduce_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum: return "sum";
    case ReduceOp::kMax: return "max";
    case ReduceOp::kMin: return "min";
  }
  return "unknown";
}

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  return name;
}

Json seconds_before(FlightRecorder::Clock::time_point now,
                    FlightRecorder::Clock::time_point time) {
  if (time == FlightRecorder::Clock::time_point()) return Json();
  return Json(std::chrono::duration<double>(now - time).count());
}

}  // namespace

FlightRecorder::FlightRecorder(FlightOptions options) : options_(std::move(options)) {
  TORCH_CHECK_VALUE(0 <= options_.rank && options_.rank < options_.size,
                    "FlightRecorder: expected 0 <= rank < size, but got rank ",
                    options_.rank, " of ", options_.size);
  TORCH_CHECK_VALUE(options_.capacity > 0,
                    "FlightRecorder: capacity must be positive, but is ",
                    options_.capacity);
}

int64_t FlightRecorder::add_group(const std::string& name, std::vector<int64_t> ranks) {
  const std::scoped_lock lock(mutex_);
  groups_.push_back({name, std::move(ranks)});
  return static_cast<int64_t>(groups_.size()) - 1;
}

int64_t FlightRecorder::start(int64_t group, const Operation& operation) {
  const at::Tensor& tensor = operation.out.defined() ? operation.out : operation.in;
  Entry entry{.group = group,
              .sequence = 0,
              .numel = tensor.defined() ? tensor.numel() : -1,
              .bytes = payload_bytes(operation),
              .peer = -1,
              .tag = operation.tag,
              .step = step(),
              .started = Clock::now(),
              .waited = {},
              .completed = {},
              .verb = operation.verb,
              .op = operation.op,
              .dtype = tensor.defined() ? tensor.scalar_type() : at::kByte,
              .state = State::kStarted};
  const std::scoped_lock lock(mutex_);
  Members& members = groups_[group];
  if (has_peer(operation.verb)) entry.peer = members.ranks[operation.peer];
  if (is_pair(operation.verb)) {
    const bool sends = operation.verb == Verb::kSend;
    const int64_t from = sends ? options_.rank : entry.peer;
    const int64_t to = sends ? entry.peer : options_.rank;
    entry.sequence = pairs_[{group, from, to, operation.tag}]++;
  } else {
    entry.sequence = members.collectives++;
  }
  const int64_t number = started_++;
  if (static_cast<int64_t>(entries_.size()) < options_.capacity) {
    entries_.push_back(entry);
  } else {
    entries_[number % options_.capacity] = entry;
  }
  return number;
}

// Under the lock; null for an entry that a later one has replaced.
FlightRecorder::Entry* FlightRecorder::find(int64_t number) {
  if (number + options_.capacity < started_) return nullptr;
  return &entries_[number % options_.capacity];
}

void FlightRecorder::waiting(int64_t number) {
  const auto now = Clock::now();
  const std::scoped_lock lock(mutex_);
  Entry* const entry = find(number);
  // wait() may be called again.
  if (entry == nullptr || entry->state != State::kStarted) return;
  entry->waited = now;
  entry->state = State::kWaiting;
}

void FlightRecorder::ended(int64_t number, bool well) {
  const auto now = Clock::now();
  const std::scoped_lock lock(mutex_);
  Entry* const entry = find(number);
  if (entry == nullptr || entry->state == State::kCompleted) return;
  if (well) entry->completed = now;
  entry->state = well ? State::kCompleted : State::kFailed;
}

std::string FlightRecorder::to_json(const std::string& cause) const {
  static constexpr const char* kStates[] = {"started", "waiting", "completed",
                                            "failed"};
  const auto now = Clock::now();
  const auto unix_time = std::chrono::system_clock::now().time_since_epoch();
  const std::scoped_lock lock(mutex_);
  Json::Array groups;
  for (const Members& members : groups_) {
    Json::Array ranks(members.ranks.begin(), members.ranks.end());
    groups.emplace_back(Json::Object{{"name", members.name},
                                     {"ranks", std::move(ranks)},
                                     {"started", members.collectives}});
  }
  Json::Array entries;
  const auto kept = static_cast<int64_t>(entries_.size());
  for (int64_t number = started_ - kept; number < started_; ++number) {
    const Entry& entry = entries_[number % options_.capacity];
    const bool reduces =
        entry.verb == Verb::kAllReduce || entry.verb == Verb::kReduceScatter;
    const bool has_tensor = entry.numel >= 0;
    const bool meets = has_peer(entry.verb);
    entries.emplace_back(Json::Object{
        {"group", entry.group},
        {"sequence", entry.sequence},
        {"op", verb_name(entry.verb)},
        {"reduce", reduces ? Json(reduce_name(entry.op)) : Json()},
        {"dtype", has_tensor ? Json(c10::toString(entry.dtype)) : Json()},
        {"numel", has_tensor ? Json(entry.numel) : Json()},
        {"bytes", entry.bytes},
        {"peer", meets ? Json(entry.peer) : Json()},
        {"tag", is_pair(entry.verb) ? Json(entry.tag) : Json()},
        {"step", entry.step},
        {"state", kStates[static_cast<size_t>(entry.state)]},
        {"started_s", seconds_before(now, entry.started)},
        {"waited_s", seconds_before(now, entry.waited)},
        {"completed_s", seconds_before(now, entry.completed)},
    });
  }
  const Json record(Json::Object{
      {"rank", options_.rank},
      {"world_size", options_.size},
      {"run", options_.run},
      {"host", host_name()},
      {"pid", static_cast<int64_t>(getpid())},
      {"step", step()},
      {"cause", cause},
      {"written_unix_s", std::chrono::duration<double>(unix_time).count()},
      {"started", started_},
      {"groups", std::move(groups)},
      {"entries", std::move(entries)},
  });
  return record.dump();
}

void FlightRecorder::write(const std::string& cause) const {
  const std::filesystem::path path(options_.path);
  const std::string unfinished = options_.path + ".tmp";
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  errno = 0;
  std::ofstream file(unfinished, std::ios::binary | std::ios::trunc);
  file << to_json(cause) << '\n';
  file.close();
  error.assign(file ? 0 : (errno != 0 ? errno : EIO), std::generic_category());
  if (!error) std::filesystem::rename(unfinished, path, error);
  if (error) {
    std::error_code ignored;
    std::filesystem::remove(unfinished, ignored);
    throw std::runtime_error("the flight record " + options_.path +
                             " could not be written: " + error.message());
  }
}

Group traced(const Group& group, std::shared_ptr<FlightRecorder> recorder,
             std::vector<int64_t> ranks) {
  TORCH_CHECK_VALUE(recorder != nullptr, "traced: recorder is null");
  TORCH_CHECK_VALUE(static_cast<int64_t>(ranks.size()) == group.size(),
                    "traced: expected ", group.size(), " ranks, but got ",
                    ranks.size());
  if (group.size() == 1) return group;
  return Group(group.name(), std::make_shared<TracedBackend>(group, std::move(recorder),
                                                             std::move(ranks)));
}

void write_on_abort(Watch& watch, const std::shared_ptr<FlightRecorder>& recorder) {
  struct Done {
    std::mutex mutex;
    std::condition_variable told;
    bool done = false;
  };
  watch.on_abort([recorder](const std::string& cause) {
    auto done = std::make_shared<Done>();
    std::thread([recorder, cause, done] {
      try {
        recorder->write(cause);
      } catch (const std::exception& error) {
        // One write: other ranks say the same.
        std::cerr << error.what() + std::string("\n") << std::flush;
      }
      const std::scoped_lock lock(done->mutex);
      done->done = true;
      done->told.notify_all();
    }).detach();
    std::unique_lock lock(done->mutex);
    done->told.wait_for(lock, kLongestWrite, [&] { return done->done; });
  });
}

}  // namespace torchtitan::collectives
