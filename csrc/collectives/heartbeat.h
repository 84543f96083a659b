// Ranks announce themselves in a store, so that one that dies or stalls can be named.
//
// One thread writes this rank's beat (host, process, step, where it waits) every
// `interval` and looks whether some rank has published the cause of the run's end; it
// alone talks to the store, because a store that hangs must not hang anybody else.
// It becomes the explanation of the watch: when a collective fails, the thread reads
// all beats, and the first rank to find the culprit publishes the line that all then
// throw:
//  * processes of this host that are gone, else ranks whose beat has stood still for
//    two and a half intervals ("rank 2 (host, pid 17) has died; last seen in step 12");
//  * after a timeout, else the ranks that beat but wait for nobody ("has stalled");
//  * after a timeout, else what each of the first ranks waits for: they do not match;
//  * else the error as it came.
//
// While the watch is patient, the thread guards it: it follows the beat of the next
// rank (that of rank 0 for the last one), so that every rank is followed by one other,
// and ends all waits with such a line once that rank's process has ended, its beat has
// stood still for thirty intervals, or it waits for nobody and its process has done
// nothing for `longest_idle`. Of the last it warns on stderr after the watch's timeout.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "collectives/watch.h"

namespace c10d {
class Store;
}

namespace torchtitan::collectives {

struct HeartbeatOptions {
  int64_t rank;
  int64_t size;
  std::chrono::milliseconds interval;
  // Who holds the store, for the message when it does not answer: "rank 0".
  std::string store_owner;
  std::chrono::milliseconds longest_idle;
};

class Heartbeat {
 public:
  // `store` is a connection of its own. The first beat is written before this returns.
  // Throws c10::ValueError for a rank or interval out of range, CollectiveError if the
  // store does not answer.
  Heartbeat(const c10::intrusive_ptr<c10d::Store>& store,
            const HeartbeatOptions& options, const std::shared_ptr<Watch>& watch);
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;
  // stop()
  ~Heartbeat();

  // Publishes why this rank ends the run and returns the cause that was published
  // first, by whichever rank. Takes at most two intervals and a second.
  std::string report(const std::string& cause);

  // Ends the thread, which is left behind if the store holds it for more than a second.
  void stop();
  // stop() of a rank that has done its part: nobody misses it.
  void leave();

  struct State;  // of heartbeat.cpp

 private:
  std::shared_ptr<State> state_;
};

}  // namespace torchtitan::collectives
