#include "collectives/recording.h"

#include <chrono>

#include "collectives/backend.h"

namespace torchtitan::collectives {

namespace {

using Clock = std::chrono::steady_clock;

// Adds the time of a scope, also of one that throws.
class Timed {
 public:
  Timed(Recorder& recorder, const Recorder::Key& key, Traffic traffic = {})
      : recorder_(recorder), key_(key), traffic_(traffic) {}
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;
  ~Timed() {
    traffic_.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    recorder_.add(key_, traffic_);
  }

 private:
  Recorder& recorder_;
  const Recorder::Key& key_;
  Traffic traffic_;
  Clock::time_point start_ = Clock::now();
};

class RecordedWork : public Work {
 public:
  RecordedWork(std::shared_ptr<Work> work, std::shared_ptr<Recorder> recorder,
               Recorder::Key key)
      : work_(std::move(work)), recorder_(std::move(recorder)), key_(std::move(key)) {}

  bool completed() override { return work_->completed(); }

  void wait() override {
    const Timed timed(*recorder_, key_);
    work_->wait();
  }

 private:
  std::shared_ptr<Work> work_;
  std::shared_ptr<Recorder> recorder_;
  Recorder::Key key_;
};

class RecordingBackend : public Backend {
 public:
  RecordingBackend(const Group& group, std::shared_ptr<Recorder> recorder)
      : name_(group.name()), inner_(group.backend()), recorder_(std::move(recorder)) {}

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }

  std::shared_ptr<Work> start(Operation operation) override {
    const Recorder::Key key{name_, verb_name(operation.verb)};
    const int64_t bytes = payload_bytes(operation);
    std::shared_ptr<Work> work;
    {
      const Timed timed(*recorder_, key, {.calls = 1, .bytes = bytes});
      work = inner_->start(std::move(operation));
    }
    if (!work) return nullptr;
    return std::make_shared<RecordedWork>(std::move(work), recorder_, key);
  }

 private:
  std::string name_;
  std::shared_ptr<Backend> inner_;
  std::shared_ptr<Recorder> recorder_;
};

}  // namespace

std::map<Recorder::Key, Traffic> Recorder::totals() const {
  const std::scoped_lock lock(mutex_);
  return totals_;
}

std::map<std::string, Traffic> Recorder::totals_by_group() const {
  const std::scoped_lock lock(mutex_);
  std::map<std::string, Traffic> sums;
  for (const auto& [key, total] : totals_) {
    Traffic& sum = sums[key.first];
    sum.calls += total.calls;
    sum.bytes += total.bytes;
    sum.seconds += total.seconds;
  }
  return sums;
}

Traffic Recorder::total(const std::string& group, const std::string& verb) const {
  const std::scoped_lock lock(mutex_);
  const auto found = totals_.find({group, verb});
  return found == totals_.end() ? Traffic{} : found->second;
}

void Recorder::add(const Key& key, const Traffic& traffic) {
  const std::scoped_lock lock(mutex_);
  Traffic& total = totals_[key];
  total.calls += traffic.calls;
  total.bytes += traffic.bytes;
  total.seconds += traffic.seconds;
}

void Recorder::reset() {
  const std::scoped_lock lock(mutex_);
  totals_.clear();
}

Group recorded(const Group& group, std::shared_ptr<Recorder> recorder) {
  TORCH_CHECK_VALUE(recorder != nullptr, "recorded: recorder is null");
  if (group.size() == 1) return group;
  return Group(group.name(),
               std::make_shared<RecordingBackend>(group, std::move(recorder)));
}

}  // namespace torchtitan::collectives
