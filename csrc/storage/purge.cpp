#include <cerrno>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include "base/errors.h"
#include "storage/checkpoint_names.h"
#include "storage/commit.h"
#include "storage/commit_parts.h"
#include "storage/folder.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;

// Returns the new name if there is something to keep.
std::optional<std::string> remove_or_set_aside(const std::string& folder,
                                               const std::string& leftover) {
  if (is_marked(leftover, kStagingMark)) {
    const auto [step, id] = split_marked(leftover, kStagingMark);
    const std::string aside = base::message(step, kAsideMark, id);
    if (name_before_replacing(folder, aside) && is_folder(folder + "/" + aside)) {
      move(folder + "/" + aside, folder + "/" + step);
      sync_folder(folder);
    }
  }
  const auto aside = name_when_replaced(folder, leftover);
  if (aside) {
    move(folder + "/" + leftover, folder + "/" + *aside);
  } else {
    remove_folder(folder + "/" + leftover);
  }
  return aside;
}

bool exists(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::status_known(status)) {
    errno = error.value();
    throw_file_error(path, "inspect");
  }
  return fs::exists(status);
}

// Whether there is something in it that its manifest does not list.
bool holds_foreign_entries(const FoundCheckpoint& found) {
  std::set<std::string> own{std::string(kManifestName),
                            std::string(kManifestChecksumName)};
  for (const FileRecord& record : found.manifest->files) own.insert(record.name);
  for (const std::string& name : names_in(found.path)) {
    if (!own.contains(name)) return true;
  }
  return false;
}

}  // namespace

std::optional<std::string> name_when_replaced(const std::string& folder,
                                              const std::string& name) {
  if (!is_marked(name, kStagingMark)) return std::nullopt;
  const auto [step, id] = split_marked(name, kStagingMark);
  try {
    if (read_manifest_of(folder + "/" + step).id != id) return std::nullopt;
  } catch (const std::invalid_argument&) {
    return std::nullopt;  // step-N is not the checkpoint that was staged here
  } catch (const FileError& error) {
    if (error.code() != ENOENT) throw;  // nobody can tell: nothing is deleted
    return std::nullopt;
  }
  return base::message(step, kAsideMark, id);
}

std::optional<std::string> name_before_replacing(const std::string& folder,
                                                 const std::string& aside) {
  if (!is_marked(aside, kAsideMark)) return std::nullopt;
  const auto [step, id] = split_marked(aside, kAsideMark);
  const bool unfinished = !exists(folder + "/" + step) &&
                          is_folder(base::message(folder, '/', step, kStagingMark, id));
  return unfinished ? std::optional(step) : std::nullopt;
}

void discard_staging(const std::string& folder, int64_t step, const std::string& id) {
  const std::string staging = staging_path(folder, step, id);
  if (is_folder(staging)) remove_or_set_aside(folder, fs::path(staging).filename());
}

Purged purge(const std::string& folder, int64_t keep_latest, const std::string& head,
             const FaultHook& hook) {
  base::check_value(keep_latest >= 1, "purge: expected to keep at least 1, got ",
                    keep_latest);
  const FolderListing listing = list_checkpoints(folder);
  std::map<std::string, const FoundCheckpoint*> by_id;
  for (const FoundCheckpoint& found : listing.checkpoints) {
    if (found.manifest) by_id.emplace(found.manifest->id, &found);
  }
  std::vector<const FoundCheckpoint*> too_old;  // newest first
  int64_t num_kept = 0;
  // Sequence numbers fall along the line, so a forged circle of parents ends.
  int64_t last_sequence = std::numeric_limits<int64_t>::max();
  for (auto place = by_id.find(head); place != by_id.end();) {
    const Manifest& manifest = *place->second->manifest;
    if (manifest.sequence >= last_sequence) break;
    last_sequence = manifest.sequence;
    if (num_kept >= keep_latest) too_old.push_back(place->second);
    num_kept += manifest.content == Content::kTraining;
    place = by_id.find(manifest.parent);
  }
  // Oldest first: a process that dies here leaves a line without holes.
  Purged purged;
  for (size_t i = too_old.size(); i-- > 0;) {
    const FoundCheckpoint& found = *too_old[i];
    if (holds_foreign_entries(found)) {
      purged.kept.push_back(found.path);
      continue;
    }
    const std::string trash = trash_path(folder, found.step, found.manifest->id);
    move(found.path, trash);
    sync_folder(folder);
    reach(hook, "purge renamed");
    remove_folder(trash);
    reach(hook, "purge deleted");
    purged.steps.push_back(found.step);
  }
  return purged;
}

Leftovers clean_up(const std::string& folder) {
  Leftovers leftovers;
  for (const std::string& name : names_in(folder)) {
    if (!is_leftover(name) || !is_folder(folder + "/" + name)) continue;
    if (const auto aside = remove_or_set_aside(folder, name)) {
      leftovers.set_aside.push_back(*aside);
    } else {
      leftovers.removed.push_back(name);
    }
  }
  return leftovers;
}

}  // namespace torchtitan::storage
