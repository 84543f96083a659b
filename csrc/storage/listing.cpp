#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <vector>

#include "base/errors.h"
#include "storage/checkpoint_names.h"
#include "storage/checksum.h"
#include "storage/commit.h"
#include "storage/commit_parts.h"
#include "storage/folder.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;
using base::check_value;

constexpr int64_t kMaxManifestBytes = int64_t{1} << 30;
constexpr int kMostListings = 10;

using Identities = std::map<std::string, std::pair<dev_t, ino_t>>;  // by name

// What in the folder may be a checkpoint; another folder of the same name differs.
Identities checkpoint_folders_in(const std::string& folder) {
  Identities found;
  for (const std::string& name : names_in(folder)) {
    if (!step_of(name_before_replacing(folder, name).value_or(name))) continue;
    struct stat status{};
    if (::lstat((folder + "/" + name).c_str(), &status) != 0) continue;
    found.emplace(name, std::pair(status.st_dev, status.st_ino));
  }
  return found;
}

FolderListing list_once(const std::string& folder) {
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

// Those that have to be what was written. People adapt the settings and the tokenizer
// of a folder for Hugging Face.
std::vector<FileRecord> fixed_files(const Manifest& manifest) {
  std::vector<FileRecord> files = manifest.files;
  if (manifest.content == Content::kHuggingFace) {
    std::erase_if(files, [](const FileRecord& file) {
      return !file.name.ends_with(".safetensors");
    });
  }
  return files;
}

}  // namespace

std::string compare_sizes(const std::string& path, std::span<const FileRecord> files) {
  for (const FileRecord& record : files) {
    const std::string file = path + "/" + record.name;
    std::error_code error;
    const fs::file_status status = fs::symlink_status(file, error);
    if (!fs::status_known(status)) {
      errno = error.value();
      throw_file_error(file, "inspect");
    }
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
  std::error_code error;
  const bool exists = fs::exists(name, error);
  if (error) {
    errno = error.value();
    throw_file_error(name, "inspect");
  }
  check_value(exists, path, ": holds no ", kManifestName);
  const std::string text = read_text(name, kMaxManifestBytes);
  const std::string line =
      read_text(path + "/" + std::string(kManifestChecksumName), 4096);
  const std::string expected =
      base::message(sha256(std::as_bytes(std::span(text))), "  ", kManifestName, '\n');
  check_value(line == expected, name, ": does not have the SHA-256 in ",
              kManifestChecksumName);
  return parse_manifest(text, name);
}

FoundCheckpoint inspect_checkpoint(const std::string& path) {
  FoundCheckpoint found{
      .step = -1, .path = path, .problem = "", .manifest = {}, .unreadable = false};
  try {
    Manifest manifest = read_manifest_of(path);
    found.problem = compare_sizes(path, fixed_files(manifest));
    found.step = manifest.step;
    if (found.problem.empty()) found.manifest = std::move(manifest);
  } catch (const FileError& error) {
    found.problem = error.what();
    found.unreadable = error.code() != ENOENT && error.code() != ENOTDIR;
  } catch (const std::exception& error) {
    found.problem = error.what();
  }
  return found;
}

FolderListing list_checkpoints(const std::string& folder) {
  // Another process may save and purge meanwhile: between what is gone and what was
  // not yet there when the names were read, there would be nothing.
  for (int listings = 1;; ++listings) {
    const Identities before = checkpoint_folders_in(folder);
    FolderListing listing = list_once(folder);
    if (listings == kMostListings || checkpoint_folders_in(folder) == before) {
      return listing;
    }
  }
}

void verify_files(const std::string& path, const Manifest& manifest, int64_t part,
                  int64_t num_parts) {
  check_value(part >= 0 && part < num_parts, "verify_files: part ", part, " of ",
              num_parts);
  for (auto i = static_cast<size_t>(part); i < manifest.files.size();
       i += static_cast<size_t>(num_parts)) {
    const FileRecord& expected = manifest.files[i];
    const FileRecord found = expected.blocks.empty()
                                 ? hash_file_whole(path, expected.name)
                                 : hash_file(path, expected.name);
    check_value(found.size_bytes == expected.size_bytes, path, '/', expected.name,
                ": expected ", expected.size_bytes, " bytes, found ", found.size_bytes);
    check_value(found.sha256 == expected.sha256, path, '/', expected.name,
                ": expected SHA-256 ", expected.sha256, ", found ", found.sha256);
  }
}

}  // namespace torchtitan::storage
