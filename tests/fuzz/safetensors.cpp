// Bytes of a file -> the reader of safetensors files. What it accepts covers the data
// exactly, can be read, and has a header that is written and read back alike.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "fuzz/check.h"
#include "storage/safetensors_file.h"

namespace torchtitan::fuzz {
namespace {

using namespace storage;

constexpr size_t kLengthBytes = 8;

// A file in memory, made once; its path.
const std::string& path_with(const uint8_t* data, size_t size) {
  static const int file = ::memfd_create("safetensors", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  require(file >= 0 && ::ftruncate(file, static_cast<off_t>(size)) == 0 &&
              ::pwrite(file, data, size, 0) == static_cast<ssize_t>(size),
          "the file can be made");
  return path;
}

void check_header(const SafetensorsHeader& header, size_t size) {
  int64_t end = 0;
  std::vector<TensorSpec> specs;
  for (const auto& entry : header.entries) {
    require(entry.begin == end && entry.end >= end, "tensors lie side by side");
    __int128 bytes = dtype_size_bytes(entry.spec.dtype);
    for (const int64_t dim : entry.spec.shape) {
      require(dim >= 0, "no dim is negative");
      bytes *= dim;
      if (bytes == 0) break;
      require(bytes <= static_cast<__int128>(size), "a tensor fits its file");
    }
    require(bytes == entry.end - entry.begin, "a tensor has the bytes of its shape");
    end = entry.end;
    specs.push_back(entry.spec);
  }
  require(end <= static_cast<int64_t>(size), "the data end with the file");
  const std::string text = safetensors_header(specs, header.metadata);
  const SafetensorsHeader again = parse_safetensors_header(text, end, "again");
  require(again.metadata == header.metadata, "the metadata read back alike");
  require(safetensors_header(specs, again.metadata) == text, "the text is the same");
}

void read_all(const SafetensorsReader& reader) {
  for (const auto& entry : reader.header().entries) {
    std::vector<std::byte> memory(static_cast<size_t>(entry.end - entry.begin));
    const std::vector<int64_t> zeros(entry.spec.shape.size(), 0);
    reader.read_box(entry.spec.name, {zeros, entry.spec.shape},
                    {.memory = memory, .shape = entry.spec.shape, .offset = zeros});
  }
}

}  // namespace
}  // namespace torchtitan::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace torchtitan;
  const std::string& path = fuzz::path_with(data, size);
  try {
    const storage::SafetensorsReader reader(path);
    fuzz::require(size >= fuzz::kLengthBytes, "a file has a length");
    fuzz::check_header(reader.header(), size);
    fuzz::read_all(reader);
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
