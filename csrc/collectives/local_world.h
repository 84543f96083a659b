// N ranks as N threads of one process: for tests, notebooks, one process with many GPUs
// and many ranks on one GPU. Memory is copied by the last rank that starts an
// operation; float64 and every other dtype work; sums are taken in rank order.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"

namespace torchtitan::collectives {

// A value: copies are the same world. Every method may be called from any thread.
//
// When a rank fails, abort() wakes all others and they throw the FIRST cause, whatever
// rank they are; so does every later verb. An operation that not all ranks start within
// `timeout`, or that ranks start differently, aborts the world as well; waits of a
// patient rank have no deadline.
class LocalWorld {
 public:
  LocalWorld(int64_t size, std::chrono::milliseconds timeout);

  int64_t size() const;

  // All ranks, seen by `rank`.
  Group group(int64_t rank, std::string name = "world") const;
  // The given ranks in that order, seen by `rank`, which is one of them. Threads that
  // name the same group by the same ranks meet in it, however often they ask for it.
  Group group(int64_t rank, std::string name, const std::vector<int64_t>& ranks) const;

  // Of waits that begin after it. Throws c10::ValueError unless it is positive.
  void set_timeout(std::chrono::milliseconds timeout) const;
  // Of waits under way, too.
  void set_patient(int64_t rank, bool patient) const;

  // The first cause stays. Null is refused.
  void abort(std::exception_ptr cause) const;

  // Calls body(rank) in one thread for each rank, with one compute thread each, and
  // waits for all. What the first rank to fail has thrown is thrown here.
  void run(const std::function<void(int64_t rank)>& body) const;

  struct State;  // of local_world.cpp

 private:
  std::shared_ptr<State> state_;
};

}  // namespace torchtitan::collectives
