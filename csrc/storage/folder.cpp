#include "storage/folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "storage/fault.h"
#include "storage/file.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;

void remove_entry(const fs::path& path) {
  std::error_code error;
  if (fails_at("remove")) throw_file_error(path, "delete");
  fs::remove_all(path, error);  // does not follow links
  if (error) {
    errno = error.value();
    throw_file_error(path, "delete");
  }
}

}  // namespace

bool is_folder(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (error && error != std::errc::no_such_file_or_directory &&
      error != std::errc::not_a_directory) {
    errno = error.value();
    throw_file_error(path, "inspect");
  }
  return status.type() == fs::file_type::directory;
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

void create_folders(const std::string& path) {
  std::vector<fs::path> missing;  // innermost first
  for (fs::path at = fs::absolute(path).lexically_normal(); !fs::exists(at);
       at = at.parent_path()) {
    if (at.has_filename()) missing.push_back(at);
  }
  for (size_t i = missing.size(); i-- > 0;) {
    // Other processes may create the same folders for folders of their own.
    if (fails_at("mkdir") ||
        (::mkdir(missing[i].c_str(), 0777) != 0 && errno != EEXIST)) {
      throw_file_error(missing[i], "create");
    }
    sync_folder(missing[i].parent_path());
  }
}

void create_private_folder(const std::string& path) {
  if (fails_at("mkdir") || ::mkdir(path.c_str(), 0700) != 0) {
    throw_file_error(path, "create");
  }
}

void remove_folder(const std::string& path) {
  for (const std::string& name : names_in(path)) remove_entry(fs::path(path) / name);
  remove_entry(path);
}

void move(const std::string& from, const std::string& to) {
  if (fails_at("rename") || ::rename(from.c_str(), to.c_str()) != 0) {
    throw_file_error(from, "rename to " + to);
  }
}

bool move_to_free_name(const std::string& from, const std::string& to) {
  if (fails_at("rename")) throw_file_error(from, "rename to " + to);
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

bool exchange(const std::string& one, const std::string& other) {
  if (!fails_at("rename") && ::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(),
                                         RENAME_EXCHANGE) == 0) {
    return true;
  }
  if (errno != EINVAL && errno != ENOSYS) {
    throw_file_error(one, "exchange with " + other);
  }
  return false;
}

}  // namespace torchtitan::storage
