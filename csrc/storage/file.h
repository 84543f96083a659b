// Files as checkpoints need them: created new, written whole or not at all, made
// durable, and errors that carry the path, the reason and, on a full disk, the sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace torchtitan::storage {

// The operating system refused. Python sees OSError with errno and the path.
class FileError : public std::runtime_error {
 public:
  FileError(int code, std::string path, const std::string& text)
      : std::runtime_error(text), code_(code), path_(std::move(path)) {}
  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

// Throws FileError for errno: "<path>: cannot <what>: <reason>".
[[noreturn]] void throw_file_error(const std::string& path, std::string_view what);

// What File::bypass_cache() asks for; no device has larger sectors.
inline constexpr size_t kDirectBytes = 4096;

// Owns a file descriptor. Every method throws FileError.
class File {
 public:
  // A regular file; a symbolic link is followed (model folders of caches hold links).
  static File open_for_reading(const std::string& path);
  // Refuses an existing one. Readable and writable by the owner only.
  static File create(const std::string& path);

  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  int64_t size() const;
  // From now on write_at() goes past the page cache, until offset, size or memory are
  // not at multiples of kDirectBytes, or use_cache(). Returns whether the file can.
  bool bypass_cache() noexcept;
  void use_cache() noexcept;
  void write_at(int64_t offset, std::span<const std::byte> data);
  // Fills all of `out`; a shorter file is an error.
  void read_at(int64_t offset, std::span<std::byte> out) const;
  // Lets the device begin with a range that was written, so that sync() has less to
  // wait for. Only sync() tells errors.
  void begin_sync(int64_t offset, size_t size) noexcept;
  // Returns once data and size are on the device. A failure is final: what was written
  // is then unknown, and trying again would report a success that is none.
  void sync();

 private:
  File(int descriptor, std::string path);
  int descriptor_;
  std::string path_;
};

// Makes names created, renamed or removed in the folder durable.
void sync_folder(const std::string& path);

// Whole content, at most `limit` bytes (std::invalid_argument above it).
std::string read_text(const std::string& path, int64_t limit_bytes);

// New file with this content, durable on return.
void write_text(const std::string& path, std::string_view text);

// What a manifest says of a file.
struct FileRecord {
  std::string name;  // plain, relative to the checkpoint's folder
  int64_t size_bytes;
  std::string sha256;  // of `blocks`; where that is empty, of the file
  std::string blocks;  // block_sha256 (checksum.h) of all blocks, one behind the other
};
FileRecord hash_file(const std::string& folder, const std::string& name);

// The same without blocks, as older checkpoints have it.
FileRecord hash_file_whole(const std::string& folder, const std::string& name);

// What torch.distributed.checkpoint names the table of a folder.
inline constexpr std::string_view kDcpMetadataName = ".metadata";

// Throws std::invalid_argument unless `name` is one plain name: not empty, no '/', no
// control character, does not start with '.' (but for kDcpMetadataName) or '~', at most
// 255 bytes.
void check_plain_name(std::string_view name, std::string_view where);

}  // namespace torchtitan::storage
