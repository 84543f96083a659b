#include "storage/fault.h"

#ifdef TORCHTITAN_FAULT_POINTS

#include <signal.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/errors.h"

namespace torchtitan::storage {
namespace {

enum class Kind { kKill, kStall, kFlip, kError };

struct KindRow {
  std::string_view name;
  Kind kind;
  int code;
};

constexpr std::array<KindRow, 7> kKinds{{{"kill", Kind::kKill, 0},
                                         {"stall", Kind::kStall, 0},
                                         {"flip", Kind::kFlip, 0},
                                         {"EIO", Kind::kError, EIO},
                                         {"ENOSPC", Kind::kError, ENOSPC},
                                         {"EROFS", Kind::kError, EROFS},
                                         {"EDQUOT", Kind::kError, EDQUOT}}};

struct Planned {
  std::string point;
  KindRow what;
  int64_t number;
};

int64_t read_number(std::string_view text, std::string_view fault) {
  int64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  base::check_value(error == std::errc() && end == text.data() + text.size(),
                    "TORCHTITAN_FAULT: expected a number, found \"", text, "\" in \"",
                    fault, '"');
  return number;
}

std::vector<std::string_view> split_at_colons(std::string_view text) {
  std::vector<std::string_view> fields;
  while (true) {
    const size_t colon = text.find(':');
    fields.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return fields;
    text.remove_prefix(colon + 1);
  }
}

// nullopt: no fault in this process.
std::optional<Planned> parse(std::string_view text) {
  if (text.empty()) return std::nullopt;
  const std::vector<std::string_view> fields = split_at_colons(text);
  base::check_value(fields.size() == 3 || fields.size() == 4,
                    "TORCHTITAN_FAULT: expected point:kind:n or point:kind:n:rank, "
                    "found \"",
                    text, '"');
  std::optional<KindRow> what;
  for (const KindRow& row : kKinds) {
    if (row.name == fields[1]) what = row;
  }
  base::check_value(what.has_value(), "TORCHTITAN_FAULT: unknown kind \"", fields[1],
                    "\" in \"", text, '"');
  const int64_t number = read_number(fields[2], text);
  base::check_value(number >= 1, "TORCHTITAN_FAULT: n counts from 1, found ", number);
  if (fields.size() == 4) {
    const int64_t rank = read_number(fields[3], text);
    const char* const own = std::getenv("RANK");
    if (!own || rank != read_number(own, "RANK")) {
      return std::nullopt;
    }
  }
  return Planned{std::string(fields[0]), *what, number};
}

struct State {
  std::mutex mutex;
  std::optional<Planned> planned;
  int64_t times_reached = 0;
  bool has_happened = false;
};

State& state() {
  static State state = [] {
    const char* const text = std::getenv("TORCHTITAN_FAULT");
    return State{.mutex = {}, .planned = parse(text ? text : "")};
  }();
  return state;
}

}  // namespace

Fault fault_at(std::string_view point) {
  State& now = state();
  const std::lock_guard lock(now.mutex);
  if (!now.planned || now.planned->point != point) return {};
  if (++now.times_reached != now.planned->number) return {};
  now.has_happened = true;
  switch (now.planned->what.kind) {
    case Kind::kKill: ::kill(::getpid(), SIGKILL); break;
    case Kind::kStall: ::kill(::getpid(), SIGSTOP); break;
    case Kind::kFlip: return {.code = 0, .flips = true};
    case Kind::kError: return {.code = now.planned->what.code, .flips = false};
  }
  return {};
}

void set_fault(std::string_view text) {
  std::optional<Planned> planned = parse(text);
  State& now = state();
  const std::lock_guard lock(now.mutex);
  now.planned = std::move(planned);
  now.times_reached = 0;
  now.has_happened = false;
}

bool fault_has_happened() {
  State& now = state();
  const std::lock_guard lock(now.mutex);
  return now.has_happened;
}

}  // namespace torchtitan::storage

#endif
