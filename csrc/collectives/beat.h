// What a rank says about itself in each heartbeat, and what follows from all of them.
// Knows no store and no clock: heartbeat.h brings both.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "collectives/watch.h"

namespace torchtitan::collectives {

struct Beat {
  int64_t number = 0;
  int64_t pid = 0;
  int64_t step = -1;
  int64_t unix_ms = 0;    // when it was written, on the writer's clock
  int64_t idle_ms = 0;    // since the rank last waited in a collective; 0 while it does
  int64_t work = 0;       // grows while the process works; see work_meter.h
  bool left = false;      // has done its part of the run; this is its last beat
  std::string host;       // no spaces
  std::string processes;  // equal where process ids mean the same: a namespace
  std::string waits_for;  // empty while it waits for nobody

  std::string to_text() const;
  // Nullopt for a text that to_text did not write.
  static std::optional<Beat> from_text(const std::string& text);
};

// The beat of this process and thread group, apart from `number` and `work`.
Beat own_beat(const Watch& watch);

// True if `beat` is of a process of this machine that has ended (or is a zombie).
bool has_ended(const Beat& beat, const Beat& own);

// What one rank knows of another.
struct Sighting {
  int64_t rank;
  std::optional<Beat> beat;  // the newest; none if it never wrote one
  bool ended = false;        // its process is known to be gone
  bool silent = false;       // its beat stood still for long enough to say so
};

// The line that says who is to blame for `failure`, seen by `rank` at `unix_ms`;
// nullopt if nothing is known about anybody.
std::optional<std::string> blame(std::span<const Sighting> sightings,
                                 const Failure& failure, int64_t rank, int64_t unix_ms);

// The line about a rank whose process lives, but does nothing, while others wait for it
// without a deadline.
std::string idle_text(const Sighting& sighting, int64_t idle_ms);

}  // namespace torchtitan::collectives
