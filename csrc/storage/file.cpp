#include "storage/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "storage/checksum.h"
#include "storage/fault.h"

namespace torchtitan::storage {
namespace {

constexpr mode_t kOwnerOnly = 0600;

std::string parent_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

ssize_t write_some(int descriptor, std::span<const std::byte> data, int64_t offset) {
  const Fault fault = fault_at("write");
  if (fault.code != 0) {
    errno = fault.code;
    return -1;
  }
  if (!fault.flips) return ::pwrite(descriptor, data.data(), data.size(), offset);
  std::vector<std::byte> memory(data.size() + kDirectBytes);
  void* begin = memory.data();
  size_t space = memory.size();
  const std::span flipped(
      static_cast<std::byte*>(std::align(kDirectBytes, data.size(), begin, space)),
      data.size());
  std::copy(data.begin(), data.end(), flipped.begin());
  flip_bit(flipped);
  return ::pwrite(descriptor, flipped.data(), flipped.size(), offset);
}

ssize_t read_some(int descriptor, std::span<std::byte> out, int64_t offset) {
  const Fault fault = fault_at("read");
  if (fault.code != 0) {
    errno = fault.code;
    return -1;
  }
  const ssize_t taken = ::pread(descriptor, out.data(), out.size(), offset);
  if (fault.flips && taken > 0) flip_bit(out.first(static_cast<size_t>(taken)));
  return taken;
}

// Calls `action` with one block of a file behind the other; returns the bytes of all.
template <class Action>
int64_t for_each_block(const std::string& folder, const std::string& name,
                       const Action& action) {
  check_plain_name(name, folder);
  const File file = File::open_for_reading(folder + "/" + name);
  const int64_t size = file.size();
  std::vector<std::byte> block(std::min(kHashedBlockBytes, static_cast<size_t>(size)));
  for (int64_t offset = 0; offset < size;) {
    const auto part = std::span(block).first(
        std::min(block.size(), static_cast<size_t>(size - offset)));
    file.read_at(offset, part);
    action(std::span<const std::byte>(part));
    offset += static_cast<int64_t>(part.size());
  }
  return size;
}

}  // namespace

void throw_file_error(const std::string& path, std::string_view what) {
  const int code = errno;
  std::string text = base::message(path, ": cannot ", what, ": ", std::strerror(code));
  struct statvfs space{};
  if ((code == ENOSPC || code == EDQUOT) &&
      ::statvfs(parent_of(path).c_str(), &space) == 0) {
    text += base::message(" (", space.f_bavail * space.f_frsize, " bytes free)");
  }
  throw FileError(code, path, text);
}

File::File(int descriptor, std::string path)
    : descriptor_(descriptor), path_(std::move(path)) {}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open_for_reading(const std::string& path) {
  // Without O_NONBLOCK a named pipe in place of a file would wait for a writer.
  const int descriptor =
      fails_at("open") ? -1 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_file_error(path, "open");
  File file(descriptor, path);
  struct stat status{};
  if (::fstat(descriptor, &status) != 0) throw_file_error(path, "inspect");
  base::check_value(S_ISREG(status.st_mode), path, ": expected a regular file");
  return file;
}

File File::create(const std::string& path) {
  const int descriptor =
      fails_at("create")
          ? -1
          : ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kOwnerOnly);
  if (descriptor < 0) throw_file_error(path, "create");
  return File(descriptor, path);
}

int64_t File::size() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0) throw_file_error(path_, "inspect");
  return status.st_size;
}

bool File::bypass_cache() noexcept {
#if defined(STATX_DIOALIGN) && defined(O_DIRECT)
  // Asked for before it is tried: some file systems accept the flag and ignore it.
  struct statx status{};
  if (::statx(descriptor_, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) != 0) {
    return false;
  }
  const auto fits = [](uint32_t bytes) {
    return bytes != 0 && kDirectBytes % bytes == 0;
  };
  if ((status.stx_mask & STATX_DIOALIGN) == 0 || !fits(status.stx_dio_mem_align) ||
      !fits(status.stx_dio_offset_align)) {
    return false;
  }
  const int flags = ::fcntl(descriptor_, F_GETFL);
  return flags >= 0 && ::fcntl(descriptor_, F_SETFL, flags | O_DIRECT) == 0;
#else
  return false;
#endif
}

void File::use_cache() noexcept {
#ifdef O_DIRECT
  const int flags = ::fcntl(descriptor_, F_GETFL);
  if (flags >= 0) ::fcntl(descriptor_, F_SETFL, flags & ~O_DIRECT);
#endif
}

void File::write_at(int64_t offset, std::span<const std::byte> data) {
  const size_t total = data.size();
  bool has_used_cache = false;
  while (!data.empty()) {
    const ssize_t written = write_some(descriptor_, data, offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EINVAL && !has_used_cache) {
      // Not between sectors, where a part of another size may have ended. Another
      // thread may have found the same just now: whether this one changed the file does
      // not matter.
      use_cache();
      has_used_cache = true;
      continue;
    }
    if (written < 0) {
      throw_file_error(path_,
                       base::message("write ", data.size(), " of ", total, " bytes"));
    }
    data = data.subspan(static_cast<size_t>(written));
    offset += written;
  }
}

void File::read_at(int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t taken = read_some(descriptor_, out, offset);
    if (taken < 0 && errno == EINTR) continue;
    if (taken < 0) throw_file_error(path_, "read");
    base::check_value(taken > 0, path_, ": file ends at byte ", offset, ", expected ",
                      out.size(), " more");
    out = out.subspan(static_cast<size_t>(taken));
    offset += taken;
  }
}

void File::begin_sync(int64_t offset, size_t size) noexcept {
#ifdef SYNC_FILE_RANGE_WRITE
  // Waits for nothing, so it takes no error away from fsync.
  ::sync_file_range(descriptor_, offset, static_cast<off64_t>(size),
                    SYNC_FILE_RANGE_WRITE);
#else
  static_cast<void>(offset), static_cast<void>(size);
#endif
}

void File::sync() {
  if (fails_at("sync") || ::fsync(descriptor_) != 0) {
    const int code = errno;
    struct stat status{};
    const int64_t size = ::fstat(descriptor_, &status) == 0 ? status.st_size : 0;
    errno = code;
    throw_file_error(path_, base::message("make ", size, " bytes durable"));
  }
}

void sync_folder(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_file_error(path, "open");
  const int result = fails_at("sync") ? -1 : ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  errno = code;
  if (result != 0) throw_file_error(path, "make durable");
}

std::string read_text(const std::string& path, int64_t limit_bytes) {
  const File file = File::open_for_reading(path);
  const int64_t size = file.size();
  base::check_value(size <= limit_bytes, path, ": expected at most ", limit_bytes,
                    " bytes, found ", size);
  std::string text(static_cast<size_t>(size), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void write_text(const std::string& path, std::string_view text) {
  File file = File::create(path);
  file.write_at(0, std::as_bytes(std::span(text)));
  file.sync();
}

FileRecord hash_file(const std::string& folder, const std::string& name) {
  FileRecord record{.name = name, .size_bytes = 0, .sha256 = "", .blocks = ""};
  record.size_bytes = for_each_block(
      folder, name, [&](auto block) { record.blocks += block_sha256(block); });
  record.sha256 = sha256(std::as_bytes(std::span(record.blocks)));
  return record;
}

FileRecord hash_file_whole(const std::string& folder, const std::string& name) {
  Sha256 hash;
  const int64_t size =
      for_each_block(folder, name, [&](auto block) { hash.update(block); });
  return {.name = name, .size_bytes = size, .sha256 = hash.finish(), .blocks = ""};
}

void check_plain_name(std::string_view name, std::string_view where) {
  const auto is_bad = [](char c) {
    return c == '/' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  };
  const bool plain = !name.empty() && name.size() <= 255 &&
                     (name[0] != '.' || name == kDcpMetadataName) && name[0] != '~' &&
                     std::none_of(name.begin(), name.end(), is_bad);
  base::check_value(plain, where, ": expected a plain file name, found \"", name, '"');
}

}  // namespace torchtitan::storage
