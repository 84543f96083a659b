// Names in a folder of checkpoints; commit.h says what they mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace torchtitan::storage {

inline constexpr std::string_view kStepPrefix = "step-";
inline constexpr std::string_view kStagingMark = ".tmp-";
inline constexpr std::string_view kAsideMark = ".replaced-by-";
inline constexpr std::string_view kTrashPrefix = ".trash-";

std::string step_name(int64_t step);  // "step-N"

// N of exactly "step-N"; nullopt for anything else ("step-09", "step-9.bak",
// "old-step-9").
std::optional<int64_t> step_of(std::string_view name);

// "step-N<mark><id>"
bool is_marked(std::string_view name, std::string_view mark);

// "step-N" and the id of a name like "step-N.tmp-ID".
std::pair<std::string, std::string> split_marked(std::string_view name,
                                                 std::string_view mark);

// A name that only a save or a purge under way has.
bool is_leftover(std::string_view name);

// Throws std::invalid_argument for a negative step or what is no id.
std::string staging_path(const std::string& folder, int64_t step,
                         const std::string& id);

std::string trash_path(const std::string& folder, int64_t step, const std::string& id);

}  // namespace torchtitan::storage
