#include "storage/safetensors_file.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace torchtitan::storage {
namespace {

using base::check_value;

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kWindowBytes = int64_t{1} << 20;

// The header's text; leaves the start of the data in `data_start`.
std::string read_header(VerifiedFile& file, int64_t& data_start) {
  const int64_t size = file.size();
  check_value(size >= kLengthBytes, file.path(), ": file of ", size,
              " bytes is too short for safetensors");
  std::array<std::byte, kLengthBytes> bytes;
  file.read_at(0, bytes);
  uint64_t length = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    length |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  check_value(length <= static_cast<uint64_t>(kMaxHeaderBytes) &&
                  static_cast<int64_t>(length) <= size - kLengthBytes,
              file.path(), ": header of ", length, " bytes in a file of ", size,
              ", expected at most ", kMaxHeaderBytes);
  std::string text(static_cast<size_t>(length), '\0');
  file.read_at(kLengthBytes, std::as_writable_bytes(std::span(text)));
  data_start = kLengthBytes + static_cast<int64_t>(length);
  return text;
}

// Row-major strides in bytes.
std::vector<int64_t> strides_of(std::span<const int64_t> shape, int64_t item_bytes) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = item_bytes;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d];
  }
  return strides;
}

// Reads ranges that come in ascending order, near ones through a window.
class WindowedReader {
 public:
  WindowedReader(VerifiedFile& file, int64_t end) : file_(file), end_(end) {}

  void read(int64_t offset, std::span<std::byte> out) {
    const auto size = static_cast<int64_t>(out.size());
    if (offset < start_ ||
        offset + size > start_ + static_cast<int64_t>(window_.size())) {
      window_.resize(
          static_cast<size_t>(std::min(std::max(kWindowBytes, size), end_ - offset)));
      file_.read_at(offset, window_);
      start_ = offset;
    }
    std::memcpy(out.data(), window_.data() + (offset - start_), out.size());
  }

 private:
  VerifiedFile& file_;
  int64_t end_;
  int64_t start_ = 0;
  std::vector<std::byte> window_;
};

}  // namespace

SafetensorsReader::SafetensorsReader(VerifiedFile file) : file_(std::move(file)) {
  const std::string text = read_header(file_, data_start_);
  header_ = parse_safetensors_header(text, file_.size() - data_start_, file_.path());
  for (size_t i = 0; i < header_.entries.size(); ++i) {
    index_.emplace(header_.entries[i].spec.name, i);
  }
}

const SafetensorsHeader::Entry& SafetensorsReader::entry(
    const std::string& name) const {
  const auto place = index_.find(name);
  check_value(place != index_.end(), file_.path(), ": no tensor \"", name, '"');
  return header_.entries[place->second];
}

void SafetensorsReader::read_box(const std::string& name, const Box& box,
                                 const Destination& destination) const {
  const auto& [spec, begin, end] = entry(name);
  const std::string where = file_.path() + ": " + name;
  check_inside(box, spec.shape, where);
  check_inside({destination.offset, box.size}, destination.shape,
               where + " into memory");
  const int64_t item = dtype_size_bytes(spec.dtype);
  const int64_t needed = size_in_bytes({name, spec.dtype, destination.shape});
  check_value(static_cast<int64_t>(destination.memory.size()) == needed, where,
              ": memory of ", destination.memory.size(), " bytes, expected ", needed);
  if (std::find(box.size.begin(), box.size.end(), 0) != box.size.end()) return;

  const std::vector<int64_t> from = strides_of(spec.shape, item);
  const std::vector<int64_t> to = strides_of(destination.shape, item);
  int64_t source = data_start_ + begin, target = 0;
  for (size_t d = 0; d < box.size.size(); ++d) {
    source += box.offset[d] * from[d];
    target += destination.offset[d] * to[d];
  }
  // Trailing dims that are contiguous on both sides form one run.
  size_t num_outer = box.size.size();
  int64_t run = item;
  while (num_outer > 0 && from[num_outer - 1] == run && to[num_outer - 1] == run) {
    run *= box.size[--num_outer];
  }
  const bool windowed = num_outer > 0 && from[num_outer - 1] < kWindowBytes / 8;
  WindowedReader window(file_, data_start_ + end);
  std::vector<int64_t> index(num_outer, 0);
  while (true) {
    const auto out = destination.memory.subspan(static_cast<size_t>(target),
                                                static_cast<size_t>(run));
    windowed ? window.read(source, out) : file_.read_at(source, out);
    size_t d = num_outer;
    for (; d > 0; --d) {
      source += from[d - 1], target += to[d - 1];
      if (++index[d - 1] < box.size[d - 1]) break;
      source -= from[d - 1] * box.size[d - 1], target -= to[d - 1] * box.size[d - 1];
      index[d - 1] = 0;
    }
    if (d == 0) return;
  }
}

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     std::vector<TensorSpec> tensors,
                                     const std::map<std::string, std::string>& metadata,
                                     int64_t num_threads)
    : file_(path, num_threads), tensors_(std::move(tensors)) {
  const std::string header = safetensors_header(tensors_, metadata);
  std::array<std::byte, kLengthBytes> length;
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<std::byte>(header.size() >> (8 * i));
  }
  file_.write(length);
  file_.write(std::as_bytes(std::span(header)));
}

void SafetensorsWriter::append(const std::string& name,
                               std::span<const std::byte> data) {
  check_value(next_ < tensors_.size() && tensors_[next_].name == name, file_.path(),
              ": expected tensor \"",
              next_ < tensors_.size() ? tensors_[next_].name : "(none)", "\", got \"",
              name, '"');
  const int64_t expected = size_in_bytes(tensors_[next_]);
  check_value(static_cast<int64_t>(data.size()) == expected, file_.path(),
              ": tensor \"", name, "\" takes ", expected, " bytes, got ", data.size());
  file_.write(data);
  ++next_;
}

FileRecord SafetensorsWriter::finish() {
  check_value(next_ == tensors_.size(), file_.path(), ": ", tensors_.size() - next_,
              " tensors were not written");
  return file_.finish();
}

}  // namespace torchtitan::storage
