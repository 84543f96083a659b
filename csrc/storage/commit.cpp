#include "storage/commit.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include "base/errors.h"
#include "storage/checksum.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;
using base::check_value;

constexpr std::string_view kStepPrefix = "step-";
constexpr std::string_view kStagingMark = ".tmp-";
constexpr std::string_view kAsideMark = ".replaced-by-";
constexpr std::string_view kTrashPrefix = ".trash-";
constexpr int64_t kMaxManifestBytes = int64_t{1} << 30;

std::string step_name(int64_t step) { return base::message(kStepPrefix, step); }

// N of exactly "step-N"; nullopt for anything else ("step-09", "step-9.bak",
// "old-step-9").
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

// "step-N<mark><id>"
bool is_marked(std::string_view name, std::string_view mark) {
  const size_t at = name.rfind(mark);
  return at != std::string_view::npos && step_of(name.substr(0, at)).has_value() &&
         is_checkpoint_id(name.substr(at + mark.size()));
}

bool is_leftover(std::string_view name) {
  if (is_marked(name, kStagingMark)) return true;
  return name.starts_with(kTrashPrefix) &&
         is_marked(name.substr(kTrashPrefix.size()), "-");
}

std::string staging_path(const std::string& folder, int64_t step,
                         const std::string& id) {
  check_value(step >= 0 && is_checkpoint_id(id), "checkpoint: bad step ", step,
              " or id \"", id, '"');
  return base::message(folder, '/', step_name(step), kStagingMark, id);
}

// A real folder, not a link to one.
bool is_folder(const std::string& path) {
  return fs::symlink_status(path).type() == fs::file_type::directory;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    errno = error.value();
    throw_file_error(folder, "list");
  }
  std::sort(names.begin(), names.end());
  return names;
}

void remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);  // does not follow links
  if (error) {
    errno = error.value();
    throw_file_error(path, "delete");
  }
}

void reach(const FaultHook& hook, std::string_view point) {
  if (hook) hook(point);
}

void move(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw_file_error(from, "rename to " + to);
}

// Rename that never replaces; false when the target is there.
bool move_to_free_name(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) ==
      0) {
    return true;
  }
  if (errno == EEXIST) return false;
  if (errno != EINVAL && errno != ENOSYS) throw_file_error(from, "rename to " + to);
  // A file system without that flag; no other process commits into this folder.
  if (fs::exists(fs::symlink_status(to))) return false;
  move(from, to);
  return true;
}

std::string trash_path(const std::string& folder, int64_t step, const std::string& id) {
  return base::message(folder, '/', kTrashPrefix, step_name(step), '-', id);
}

// Returns where the replaced checkpoint is.
std::string replace(const std::string& folder, const std::string& staging,
                    const std::string& target, const Manifest& manifest,
                    const FaultHook& hook) {
  const std::string aside =
      base::message(folder, '/', step_name(manifest.step), kAsideMark, manifest.id);
  if (::renameat2(AT_FDCWD, staging.c_str(), AT_FDCWD, target.c_str(),
                  RENAME_EXCHANGE) == 0) {
    reach(hook, "exchanged");
    move(staging, aside);
  } else if (errno == EINVAL || errno == ENOSYS) {
    move(target, aside);
    reach(hook, "set aside");
    move(staging, target);
  } else {
    throw_file_error(staging, "exchange with " + target);
  }
  sync_folder(folder);
  reach(hook, "replaced");
  return aside;
}

// Missing, unlisted or wrongly sized files of a checkpoint's folder; empty when none.
std::string compare_sizes(const std::string& path, const Manifest& manifest) {
  for (const FileRecord& record : manifest.files) {
    const std::string file = path + "/" + record.name;
    std::error_code error;
    const fs::file_status status = fs::symlink_status(file, error);
    if (status.type() != fs::file_type::regular) return file + ": missing";
    const auto size = static_cast<int64_t>(fs::file_size(file, error));
    if (error || size != record.size_bytes) {
      return base::message(file, ": expected ", record.size_bytes, " bytes, found ",
                           size);
    }
  }
  return "";
}

Manifest read_manifest_of(const std::string& path) {
  const std::string name = path + "/" + std::string(kManifestName);
  check_value(fs::exists(name), path, ": holds no ", kManifestName);
  const std::string text = read_text(name, kMaxManifestBytes);
  const std::string line =
      read_text(path + "/" + std::string(kManifestChecksumName), 4096);
  const std::string expected =
      base::message(sha256(std::as_bytes(std::span(text))), "  ", kManifestName, '\n');
  check_value(line == expected, name, ": does not have the SHA-256 in ",
              kManifestChecksumName);
  return parse_manifest(text, name);
}

// "step-N" and the id of a name like "step-N.tmp-ID".
std::pair<std::string, std::string> split(const std::string& name,
                                          std::string_view mark) {
  const size_t at = name.rfind(mark);
  return {name.substr(0, at), name.substr(at + mark.size())};
}

// Where a process died between the exchange and the rename, the replaced checkpoint has
// the name of the staging folder: the name that it was to get, else nullopt.
std::optional<std::string> name_when_replaced(const std::string& folder,
                                              const std::string& name) {
  if (!is_marked(name, kStagingMark)) return std::nullopt;
  const auto [step, id] = split(name, kStagingMark);
  try {
    if (read_manifest_of(folder + "/" + step).id != id) return std::nullopt;
  } catch (const std::invalid_argument&) {
    return std::nullopt;  // step-N is not the checkpoint that was staged here
  }
  return base::message(step, kAsideMark, id);
}

// On a file system that cannot exchange folders a process may die when step-N was set
// aside and what replaces it has not yet its name. "step-N" then, else nullopt.
std::optional<std::string> name_before_replacing(const std::string& folder,
                                                 const std::string& aside) {
  if (!is_marked(aside, kAsideMark)) return std::nullopt;
  const auto [step, id] = split(aside, kAsideMark);
  const bool unfinished = !fs::exists(fs::symlink_status(folder + "/" + step)) &&
                          is_folder(base::message(folder, '/', step, kStagingMark, id));
  return unfinished ? std::optional(step) : std::nullopt;
}

// Returns the new name if there is something to keep.
std::optional<std::string> remove_or_set_aside(const std::string& folder,
                                               const std::string& leftover) {
  if (is_marked(leftover, kStagingMark)) {
    const auto [step, id] = split(leftover, kStagingMark);
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

}  // namespace

std::string create_staging(const std::string& folder, int64_t step,
                           const std::string& id) {
  const std::string staging = staging_path(folder, step, id);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    errno = error.value();
    throw_file_error(folder, "create");
  }
  if (::mkdir(staging.c_str(), 0700) != 0) throw_file_error(staging, "create");
  return staging;
}

void discard_staging(const std::string& folder, int64_t step, const std::string& id) {
  const std::string staging = staging_path(folder, step, id);
  if (is_folder(staging)) remove_or_set_aside(folder, fs::path(staging).filename());
}

Committed commit(const std::string& folder, const Manifest& manifest,
                 const FaultHook& hook) {
  const std::string staging = staging_path(folder, manifest.step, manifest.id);
  const std::string target = folder + "/" + step_name(manifest.step);
  const std::string problem = compare_sizes(staging, manifest);
  check_value(problem.empty(), problem);
  std::set<std::string> listed;
  for (const FileRecord& record : manifest.files) listed.insert(record.name);
  for (const std::string& name : names_in(staging)) {
    check_value(listed.contains(name), staging, ": holds \"", name,
                "\", which the manifest does not list");
  }
  const std::string text = dump_manifest(manifest);
  parse_manifest(text, "manifest to be written");  // never publish what cannot be read
  reach(hook, "before manifest");
  write_text(staging + "/" + std::string(kManifestName), text);
  reach(hook, "manifest written");
  write_text(
      staging + "/" + std::string(kManifestChecksumName),
      base::message(sha256(std::as_bytes(std::span(text))), "  ", kManifestName, '\n'));
  sync_folder(staging);
  reach(hook, "before rename");
  std::string aside;
  if (move_to_free_name(staging, target)) {
    reach(hook, "renamed");
    sync_folder(folder);
  } else {
    aside = replace(folder, staging, target, manifest, hook);
  }
  reach(hook, "durable");
  return {.path = target, .set_aside = aside};
}

FoundCheckpoint inspect_checkpoint(const std::string& path) {
  FoundCheckpoint found{.step = -1, .path = path, .problem = "", .manifest = {}};
  try {
    Manifest manifest = read_manifest_of(path);
    found.problem = compare_sizes(path, manifest);
    found.step = manifest.step;
    if (found.problem.empty()) found.manifest = std::move(manifest);
  } catch (const std::exception& error) {
    found.problem = error.what();
  }
  return found;
}

FolderListing list_checkpoints(const std::string& folder) {
  FolderListing listing;
  for (const std::string& name : names_in(folder)) {
    const std::optional<int64_t> step =
        step_of(name_before_replacing(folder, name).value_or(name));
    if (!step || !is_folder(folder + "/" + name)) {
      const bool known = is_leftover(name) || is_marked(name, kAsideMark);
      if (name.find(kStepPrefix) != std::string::npos && !known) {
        listing.ignored.push_back(name);
      }
      continue;
    }
    FoundCheckpoint found = inspect_checkpoint(folder + "/" + name);
    if (found.manifest && found.step != *step) {
      found.problem =
          base::message(found.path, ": its manifest is of step ", found.step);
      found.manifest.reset();
    }
    found.step = *step;
    listing.checkpoints.push_back(std::move(found));
  }
  const auto age = [](const FoundCheckpoint& found) {
    return found.manifest ? std::pair(1, -found.manifest->sequence)
                          : std::pair(0, -found.step);
  };
  std::stable_sort(listing.checkpoints.begin(), listing.checkpoints.end(),
                   [age](const auto& a, const auto& b) { return age(a) < age(b); });
  return listing;
}

void verify_files(const std::string& path, const Manifest& manifest, int64_t part,
                  int64_t num_parts) {
  check_value(part >= 0 && part < num_parts, "verify_files: part ", part, " of ",
              num_parts);
  for (auto i = static_cast<size_t>(part); i < manifest.files.size();
       i += static_cast<size_t>(num_parts)) {
    const FileRecord& expected = manifest.files[i];
    const FileRecord found = hash_file(path, expected.name);
    check_value(found.size_bytes == expected.size_bytes, path, '/', expected.name,
                ": expected ", expected.size_bytes, " bytes, found ", found.size_bytes);
    check_value(found.sha256 == expected.sha256, path, '/', expected.name,
                ": expected SHA-256 ", expected.sha256, ", found ", found.sha256);
  }
}

std::vector<int64_t> purge(const std::string& folder, int64_t keep_latest,
                           const std::string& head, const FaultHook& hook) {
  check_value(keep_latest >= 1, "purge: expected to keep at least 1, got ",
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
  std::vector<int64_t> deleted;
  for (size_t i = too_old.size(); i-- > 0;) {
    const FoundCheckpoint& found = *too_old[i];
    const std::string trash = trash_path(folder, found.step, found.manifest->id);
    move(found.path, trash);
    sync_folder(folder);
    reach(hook, "purge renamed");
    remove_folder(trash);
    reach(hook, "purge deleted");
    deleted.push_back(found.step);
  }
  return deleted;
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
