#include "plan/parse_action.h"

#include <charconv>
#include <optional>
#include <sstream>
#include <utility>

#include "base/errors.h"

namespace torchtitan::plan {
namespace {

std::optional<ActionKind> find_kind(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(ActionKind::kOptimizerStep); ++i) {
    const auto kind = static_cast<ActionKind>(i);
    if (to_string(kind) == name) return kind;
  }
  return std::nullopt;
}

// "mb3" for the prefix "mb" is 3.
std::optional<int64_t> find_index(const std::string& word, const std::string& prefix) {
  if (!word.starts_with(prefix)) return std::nullopt;
  int64_t index = -1;
  const char* end = word.data() + word.size();
  const auto found = std::from_chars(word.data() + prefix.size(), end, index);
  if (found.ec != std::errc() || found.ptr != end || index < 0) return std::nullopt;
  return index;
}

}  // namespace

Action parse_action(const std::string& text) {
  std::istringstream words(text);
  std::string word;
  Action action{};
  bool understood = false;
  const auto read_kind = [&](ActionKind& into) {
    const auto kind = words >> word ? find_kind(word) : std::nullopt;
    understood = kind.has_value();
    if (kind) into = *kind;
  };
  read_kind(action.kind);
  if (understood && action.kind == ActionKind::kWait) read_kind(action.waits_for);
  while (understood && words >> word) {
    if (word == "with") {
      action.overlaps_next = true;
      break;
    }
    understood = false;
    for (const auto& [prefix, index] :
         {std::pair{"st", &action.stage}, std::pair{"s", &action.segment},
          std::pair{"g", &action.group}, std::pair{"mb", &action.microbatch}}) {
      if (const auto found = find_index(word, prefix)) {
        *index = *found;
        understood = true;
      }
    }
  }
  // What was overlooked, such as words twice or in another order, is missing here.
  base::check_value(understood && to_string(action) == text, "parse_action: '", text,
                    "' is no action");
  return action;
}

}  // namespace torchtitan::plan
