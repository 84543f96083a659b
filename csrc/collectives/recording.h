// Counts what groups do: calls, bytes and seconds for each group name and verb.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "collectives/group.h"

namespace torchtitan::collectives {

struct Traffic {
  int64_t calls = 0;
  // Size of the larger side of each call: the tensor of all_reduce, broadcast, send and
  // recv, out of all_gather, in of reduce_scatter and all_to_all.
  int64_t bytes = 0;
  // Time that the caller spent in verbs and in wait(): what overlap did not hide.
  double seconds = 0;
};

// Shared by groups and threads; every method may be called from any thread.
class Recorder {
 public:
  using Key = std::pair<std::string, std::string>;  // group name, verb

  std::map<Key, Traffic> totals() const;
  // Verbs added up.
  std::map<std::string, Traffic> totals_by_group() const;
  // Of one key; zeros if it was never called.
  Traffic total(const std::string& group, const std::string& verb) const;
  void add(const Key& key, const Traffic& traffic);
  void reset();

 private:
  mutable std::mutex mutex_;
  std::map<Key, Traffic> totals_;
};

// The same group, counted. A group of size one communicates nothing and is not counted.
Group recorded(const Group& group, std::shared_ptr<Recorder> recorder);

}  // namespace torchtitan::collectives
