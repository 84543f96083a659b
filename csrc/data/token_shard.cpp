#include "data/token_shard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>
#include <utility>

#include "base/errors.h"

namespace torchtitan::data {
namespace {

constexpr char kMagic[8] = {'T', 'T', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr uint32_t kVersion = 1;
constexpr size_t kAlignment = 64;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t token_bytes;
  uint64_t num_tokens;
  uint64_t note_bytes;
  uint64_t note_checksum;
  uint64_t token_checksum;
  uint64_t reserved;
  uint64_t header_checksum;  // of the bytes before it
};
static_assert(sizeof(Header) == kAlignment);

// FNV-1a over 8-byte words: both steps are bijections of the running value, so one
// changed word always changes the result. About 6 GB/s.
uint64_t checksum(const uint8_t* bytes, size_t size) {
  uint64_t value = 0xcbf29ce484222325u ^ size;
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + i, std::min(sizeof(word), size - i));
    value = (value ^ word) * 0x100000001b3u;
  }
  return value ^ (value >> 32);
}

uint64_t checksum(std::string_view text) {
  return checksum(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

uint64_t header_checksum(const Header& header) {
  return checksum(reinterpret_cast<const uint8_t*>(&header),
                  offsetof(Header, header_checksum));
}

size_t token_offset(size_t note_bytes) {
  return (sizeof(Header) + note_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::runtime_error system_failure(const char* action, const std::string& path,
                                  int code) {
  return std::runtime_error(
      base::message("cannot ", action, " '", path, "': ", std::strerror(code)));
}

// A file that vanishes unless it is kept.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target) {
    path_ = base::message(target, ".tmp-", getpid(), "-", std::random_device{}());
    descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (descriptor_ < 0) throw system_failure("create", path_, errno);
  }
  ~TemporaryFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (!kept_) unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(const void* bytes, size_t size) {
    const char* next = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t written = ::write(descriptor_, next, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw system_failure("write", path_, errno);
      next += written;
      size -= static_cast<size_t>(written);
    }
  }

  void rename_to(const std::string& target) {
    const int closed = close(std::exchange(descriptor_, -1));
    if (closed != 0) throw system_failure("close", path_, errno);
    if (rename(path_.c_str(), target.c_str()) != 0) {
      throw system_failure("rename to", target, errno);
    }
    kept_ = true;
  }

 private:
  std::string path_;
  int descriptor_ = -1;
  bool kept_ = false;
};

template <class Stored>
void widen(const uint8_t* tokens, int64_t first, std::span<int64_t> out) {
  const Stored* source = reinterpret_cast<const Stored*>(tokens) + first;
  std::copy(source, source + out.size(), out.begin());
}

}  // namespace

TokenShardWriter::TokenShardWriter(int64_t vocab_size) : vocab_size_(vocab_size) {
  base::check_value(vocab_size > 0 && vocab_size <= (int64_t{1} << 32),
                    "token shard: expected 0 < vocab_size <= 2^32, got ", vocab_size);
}

void TokenShardWriter::append(std::span<const int64_t> ids, std::string_view place) {
  for (size_t i = 0; i < ids.size(); ++i) {
    base::check_value(ids[i] >= 0 && ids[i] < vocab_size_, place, ": token ", i,
                      " of the document has id ", ids[i],
                      ", but the tokenizer's ids are 0 to ", vocab_size_ - 1);
  }
  tokens_.insert(tokens_.end(), ids.begin(), ids.end());
}

void TokenShardWriter::write(const std::string& path, std::string_view note) const {
  const bool narrow = vocab_size_ <= (int64_t{1} << 16);
  const std::vector<uint16_t> halves(narrow ? tokens_.begin() : tokens_.end(),
                                     tokens_.end());
  const uint8_t* bytes = narrow ? reinterpret_cast<const uint8_t*>(halves.data())
                                : reinterpret_cast<const uint8_t*>(tokens_.data());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.token_bytes = narrow ? 2 : 4;
  header.num_tokens = tokens_.size();
  header.note_bytes = note.size();
  header.note_checksum = checksum(note);
  const size_t size = tokens_.size() * header.token_bytes;
  header.token_checksum = checksum(bytes, size);
  header.header_checksum = header_checksum(header);

  const std::string padding(token_offset(note.size()) - sizeof(Header) - note.size(),
                            '\0');
  TemporaryFile file(path);
  file.write(&header, sizeof(header));
  file.write(note.data(), note.size());
  file.write(padding.data(), padding.size());
  file.write(bytes, size);
  file.rename_to(path);
}

TokenShard::TokenShard(const std::string& path) : path_(path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw system_failure("open", path, errno);
  struct stat status{};
  const bool known = fstat(descriptor, &status) == 0;
  file_bytes_ = known ? static_cast<size_t>(status.st_size) : 0;
  void* mapped = MAP_FAILED;
  if (file_bytes_ >= sizeof(Header)) {
    mapped = mmap(nullptr, file_bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
  }
  const int code = errno;
  close(descriptor);
  if (file_bytes_ < sizeof(Header)) {
    throw DamagedShard(base::message("token file '", path, "' has ", file_bytes_,
                                     " bytes, less than its header"));
  }
  if (mapped == MAP_FAILED) throw system_failure("map", path, code);
  file_ = static_cast<const uint8_t*>(mapped);
  try {
    check_header();
  } catch (...) {
    munmap(const_cast<uint8_t*>(file_), file_bytes_);
    throw;
  }
}

TokenShard::~TokenShard() { munmap(const_cast<uint8_t*>(file_), file_bytes_); }

void TokenShard::check_header() {
  Header header{};
  std::memcpy(&header, file_, sizeof(header));
  const auto require = [&](bool holds, const char* what) {
    if (!holds) throw DamagedShard(base::message("token file '", path_, "': ", what));
  };
  require(std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0, "not a token file");
  require(header.version == kVersion, "written by another version");
  require(header.header_checksum == header_checksum(header), "damaged header");
  require(header.token_bytes == 2 || header.token_bytes == 4, "wrong token width");
  require(header.note_bytes <= file_bytes_ && header.num_tokens <= file_bytes_,
          "truncated");
  const size_t offset = token_offset(header.note_bytes);
  require(file_bytes_ == offset + header.num_tokens * header.token_bytes,
          "its size is not what its header says");
  note_.assign(reinterpret_cast<const char*>(file_) + sizeof(Header),
               header.note_bytes);
  require(checksum(note_) == header.note_checksum, "damaged note");
  num_tokens_ = static_cast<int64_t>(header.num_tokens);
  token_bytes_ = header.token_bytes;
  token_checksum_ = header.token_checksum;
  tokens_ = file_ + offset;
}

void TokenShard::verify() const {
  const auto size = static_cast<size_t>(num_tokens_ * token_bytes_);
  if (checksum(tokens_, size) != token_checksum_) {
    throw DamagedShard(base::message("token file '", path_, "': damaged tokens"));
  }
}

void TokenShard::copy(int64_t first, std::span<int64_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  base::check_value(first >= 0 && first <= num_tokens_ && count <= num_tokens_ - first,
                    "token file '", path_, "': tokens ", first, " to ", first + count,
                    " asked, but it has ", num_tokens_);
  if (token_bytes_ == 2) {
    widen<uint16_t>(tokens_, first, out);
  } else {
    widen<uint32_t>(tokens_, first, out);
  }
}

}  // namespace torchtitan::data
