#include "storage/checkpoint_names.h"

#include <charconv>

#include "base/errors.h"
#include "storage/manifest.h"

namespace torchtitan::storage {

std::string step_name(int64_t step) { return base::message(kStepPrefix, step); }

std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const std::string_view digits = name.substr(kStepPrefix.size());
  int64_t step = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), step);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  if (!whole || step < 0 || step_name(step) != name) return std::nullopt;
  return step;
}

bool is_marked(std::string_view name, std::string_view mark) {
  const size_t at = name.rfind(mark);
  return at != std::string_view::npos && step_of(name.substr(0, at)).has_value() &&
         is_checkpoint_id(name.substr(at + mark.size()));
}

std::pair<std::string, std::string> split_marked(std::string_view name,
                                                 std::string_view mark) {
  const size_t at = name.rfind(mark);
  return {std::string(name.substr(0, at)), std::string(name.substr(at + mark.size()))};
}

bool is_leftover(std::string_view name) {
  if (is_marked(name, kStagingMark)) return true;
  return name.starts_with(kTrashPrefix) &&
         is_marked(name.substr(kTrashPrefix.size()), "-");
}

std::string staging_path(const std::string& folder, int64_t step,
                         const std::string& id) {
  base::check_value(step >= 0 && is_checkpoint_id(id), "checkpoint: bad step ", step,
                    " or id \"", id, '"');
  return base::message(folder, '/', step_name(step), kStagingMark, id);
}

std::string trash_path(const std::string& folder, int64_t step, const std::string& id) {
  return base::message(folder, '/', kTrashPrefix, step_name(step), '-', id);
}

}  // namespace torchtitan::storage
