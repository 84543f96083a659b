#include "storage/commit.h"

#include <set>

#include "base/errors.h"
#include "storage/checkpoint_names.h"
#include "storage/checksum.h"
#include "storage/commit_parts.h"
#include "storage/fault.h"
#include "storage/folder.h"

namespace torchtitan::storage {
namespace {

using base::check_value;

// Returns where the replaced checkpoint is.
std::string replace(const std::string& folder, const std::string& staging,
                    const std::string& target, const Manifest& manifest,
                    const FaultHook& hook) {
  const std::string aside =
      base::message(folder, '/', step_name(manifest.step), kAsideMark, manifest.id);
  if (exchange(staging, target)) {
    reach(hook, "exchanged");
    move(staging, aside);
  } else {
    move(target, aside);
    reach(hook, "set aside");
    move(staging, target);
  }
  sync_folder(folder);
  reach(hook, "replaced");
  return aside;
}

// Nobody may take for saved what its writer is told is not.
void take_back(const std::string& target, const std::string& staging) {
  try {
    move(target, staging);
  } catch (const FileError&) {  // it stays, whole; the first error is the one to tell
  }
}

}  // namespace

void reach(const FaultHook& hook, std::string_view point) {
  if (hook) hook(point);
  if (fails_at(point)) throw_file_error(std::string(point), "go on");
}

std::string create_staging(const std::string& folder, int64_t step,
                           const std::string& id) {
  const std::string staging = staging_path(folder, step, id);
  create_folders(folder);
  create_private_folder(staging);
  return staging;
}

Committed commit(const std::string& folder, const Manifest& manifest,
                 const FaultHook& hook) {
  const std::string staging = staging_path(folder, manifest.step, manifest.id);
  const std::string target = folder + "/" + step_name(manifest.step);
  const std::string problem = compare_sizes(staging, manifest.files);
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
    try {
      reach(hook, "renamed");
      sync_folder(folder);
    } catch (...) {
      take_back(target, staging);
      throw;
    }
  } else {
    aside = replace(folder, staging, target, manifest, hook);
  }
  reach(hook, "durable");
  return {.path = target, .set_aside = aside};
}

}  // namespace torchtitan::storage
