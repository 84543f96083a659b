// The executor's part for what waits for its backward in host memory
// (nn/host_store.h).
#include <algorithm>
#include <utility>

#include "train/executor.h"

namespace torchtitan::train {

bool Executor::is_offloaded(int64_t segment, int64_t microbatch) const {
  return offloaded_.contains({segment, microbatch});
}

std::unique_ptr<nn::Away>& Executor::away_of(const plan::Action& action) {
  return live_.at(static_cast<size_t>(action.microbatch))
      .away.at(static_cast<size_t>(action.segment));
}

void Executor::start_offload(const plan::Action& action) {
  const auto s = static_cast<size_t>(action.segment);
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  auto places = live.places[s];
  const auto add = [&](const std::unique_ptr<nn::Segment::Saved>& kept) {
    if (!kept) return;
    const auto tensors = kept->tensors();
    places.insert(places.end(), tensors.begin(), tensors.end());
  };
  add(live.saved[s]);
  add(live.kept[s]);
  const auto& names = model_.segments[s]->inputs();
  for (size_t i = 0; i < live.inputs[s].size(); ++i) {
    if (!batch_names_.contains(names[i])) places.push_back(&live.inputs[s][i]);
  }
  // Autograd saves parameters, tables and what the batch gave as well, which would stay
  // where they are all the same.
  std::set<const void*> staying;
  const auto stays = [&](const at::Tensor& tensor) {
    staying.insert(tensor.storage().unsafeGetStorageImpl());
  };
  for (const auto& parameter : parameters_[s]) stays(parameter);
  for (const auto& constant : model_.constants) stays(constant);
  for (const auto& name : batch_names_) {
    if (const auto found = live.values.find(name); found != live.values.end()) {
      stays(found->second);
    }
  }
  for (const auto& place : live.recorded[s]) {
    if (!place->defined() || !place->has_storage()) continue;
    if (!staying.contains(place->storage().unsafeGetStorageImpl())) {
      places.push_back(place.get());
    }
  }
  away_of(action) = host_->start_offload(places);
}

void Executor::end_reload(const plan::Action& action) {
  const auto s = static_cast<size_t>(action.segment);
  auto& live = live_.at(static_cast<size_t>(action.microbatch));
  auto& away = away_of(action);
  away->wait_reload();
  away.reset();
  live.recorded[s].clear();
  live.places[s].clear();
  live.owners[s].reset();
}

bool Executor::record(int64_t segment, const std::function<void()>& forward) {
  if (!keep_for_backward_ || !is_offloaded(segment, reached_.microbatch)) {
    forward();
    return false;
  }
  auto& recorded = live_.at(static_cast<size_t>(reached_.microbatch))
                       .recorded.at(static_cast<size_t>(segment));
  recorded = host_->record(forward);
  return host_->records();
}

void Executor::keep(int64_t segment, std::vector<at::Tensor*> places,
                    std::shared_ptr<void> owner) {
  auto& live = live_.at(static_cast<size_t>(reached_.microbatch));
  live.places.at(static_cast<size_t>(segment)) = std::move(places);
  live.owners.at(static_cast<size_t>(segment)) = std::move(owner);
}

}  // namespace torchtitan::train
