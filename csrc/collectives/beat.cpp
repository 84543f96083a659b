#include "collectives/beat.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <vector>

namespace torchtitan::collectives {

namespace {

// Only so many ranks are named in one line.
constexpr size_t kMaxNamed = 4;

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  std::string text(name);
  std::replace(text.begin(), text.end(), ' ', '_');
  return text.empty() ? "unknown" : text;
}

// Host names repeat and containers share a host: the pid namespace of one boot does
// not.
std::string process_namespace() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  char link[64] = {};
  const auto length = readlink("/proc/self/ns/pid", link, sizeof(link) - 1);
  return length > 0 && !boot.empty() ? boot + "/" + link : "unknown";
}

std::string seconds_text(int64_t milliseconds) {
  const double tenths = std::round(static_cast<double>(milliseconds) / 100.0);
  std::ostringstream text;
  text << tenths / 10.0 << " s";
  return text.str();
}

std::string name_of(const Sighting& sighting) {
  std::ostringstream text;
  text << "rank " << sighting.rank;
  if (sighting.beat) {
    text << " (" << sighting.beat->host << ", pid " << sighting.beat->pid << ")";
  }
  return text.str();
}

std::string last_step(const Beat& beat) {
  if (beat.step < 0) return "last seen before the first step";
  return "last seen in step " + std::to_string(beat.step);
}

std::string lost_text(const Sighting& sighting, int64_t unix_ms) {
  if (!sighting.beat) return name_of(sighting) + " has never answered";
  const Beat& beat = *sighting.beat;
  const char* const ended = beat.left ? " has left the run; " : " has died; ";
  if (sighting.ended) return name_of(sighting) + ended + last_step(beat);
  const int64_t age = std::max<int64_t>(unix_ms - beat.unix_ms, 0);
  return name_of(sighting) + " has not answered for " + seconds_text(age) + "; " +
         last_step(beat);
}

std::string stalled_text(const Sighting& sighting) {
  const Beat& beat = *sighting.beat;
  return name_of(sighting) + " has stalled: in no collective for " +
         seconds_text(beat.idle_ms) + "; " + last_step(beat);
}

std::string join_parts(const std::vector<std::string>& parts) {
  std::string text;
  for (size_t i = 0; i < std::min(parts.size(), kMaxNamed); ++i) {
    text += (i ? "; " : "") + parts[i];
  }
  if (parts.size() > kMaxNamed) {
    text += "; and " + std::to_string(parts.size() - kMaxNamed) + " more";
  }
  return text;
}

std::string seen_by(const Failure& failure, int64_t rank) {
  if (failure.what.empty()) return " (seen by rank " + std::to_string(rank) + ")";
  return " (rank " + std::to_string(rank) + " waits for " + failure.what + ")";
}

}  // namespace

std::string Beat::to_text() const {
  std::ostringstream text;
  text << number << ' ' << pid << ' ' << step << ' ' << unix_ms << ' ' << idle_ms << ' '
       << work << ' ' << left << ' ' << host << ' ' << processes << ' ' << waits_for;
  return text.str();
}

std::optional<Beat> Beat::from_text(const std::string& text) {
  std::istringstream in(text);
  Beat beat;
  in >> beat.number >> beat.pid >> beat.step >> beat.unix_ms >> beat.idle_ms >>
      beat.work >> beat.left >> beat.host >> beat.processes;
  if (in.fail() || in.get() != ' ') return std::nullopt;
  std::getline(in, beat.waits_for);
  return beat;
}

Beat own_beat(const Watch& watch) {
  using std::chrono::duration_cast;
  using std::chrono::milliseconds;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto waiting = watch.waiting();
  const auto idle = Watch::Clock::now() - watch.last_wait_end();
  return {.pid = getpid(),
          .step = watch.step(),
          .unix_ms = duration_cast<milliseconds>(now).count(),
          .idle_ms = waiting ? 0 : duration_cast<milliseconds>(idle).count(),
          .host = host_name(),
          .processes = process_namespace(),
          .waits_for = waiting ? waiting->what : ""};
}

bool has_ended(const Beat& beat, const Beat& own) {
  if (beat.processes != own.processes || own.processes == "unknown") return false;
  std::ifstream file("/proc/" + std::to_string(beat.pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return true;
  // "pid (command) state ...": the command may hold anything.
  const auto end = line.rfind(") ");
  if (end == std::string::npos || end + 2 >= line.size()) return true;
  return line[end + 2] == 'Z' || line[end + 2] == 'X';
}

std::optional<std::string> blame(std::span<const Sighting> sightings,
                                 const Failure& failure, int64_t rank,
                                 int64_t unix_ms) {
  std::vector<std::string> ended, silent, stalled, waits;
  for (const Sighting& sighting : sightings) {
    if (sighting.rank == rank) continue;
    if (sighting.ended) ended.push_back(lost_text(sighting, unix_ms));
    if (sighting.silent) silent.push_back(lost_text(sighting, unix_ms));
    if (!sighting.beat) continue;
    if (sighting.beat->waits_for.empty()) stalled.push_back(stalled_text(sighting));
    waits.push_back(name_of(sighting) + " waits for " + sighting.beat->waits_for);
  }
  if (!ended.empty()) return join_parts(ended) + seen_by(failure, rank);
  if (!silent.empty()) return join_parts(silent) + seen_by(failure, rank);
  if (!failure.timed_out) return std::nullopt;
  if (!stalled.empty()) return join_parts(stalled) + seen_by(failure, rank);
  return "ranks wait for different operations: rank " + std::to_string(rank) +
         " waits for " + failure.what + "; " + join_parts(waits);
}

std::string idle_text(const Sighting& sighting, int64_t idle_ms) {
  return name_of(sighting) +
         " has stalled outside of a step (saving, loading): it has neither computed nor "
         "read or written for " +
         seconds_text(idle_ms) + "; " + last_step(*sighting.beat);
}

}  // namespace torchtitan::collectives
