// Text -> the reader of manifests. What it accepts is written and read back alike,
// names only plain files, and has every element of a small tensor in exactly one box.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>

#include "base/checked_math.h"
#include "fuzz/check.h"
#include "storage/manifest.h"

namespace torchtitan::fuzz {
namespace {

using namespace storage;

constexpr int64_t kMostElements = 4096;  // of a tensor whose elements are counted

bool lies_in(int64_t element, const std::vector<int64_t>& shape, const Box& box) {
  for (size_t d = shape.size(); d-- > 0; element /= shape[d]) {
    const int64_t index = element % shape[d];
    if (index < box.offset[d] || index >= box.offset[d] + box.size[d]) return false;
  }
  return true;
}

void check_tensor(const StoredTensor& tensor, size_t num_files) {
  const int64_t num_elements = base::checked_product(tensor.shape);
  for (const StoredBox& stored : tensor.boxes) {
    require(stored.file >= 0 && static_cast<size_t>(stored.file) < num_files,
            "a box lies in a file");
  }
  if (num_elements > kMostElements) return;
  for (int64_t element = 0; element < num_elements; ++element) {
    const auto count = std::count_if(
        tensor.boxes.begin(), tensor.boxes.end(), [&](const StoredBox& stored) {
          return lies_in(element, tensor.shape, stored.box);
        });
    require(count == 1, "an element lies in one box");
  }
}

void check_manifest(const Manifest& manifest) {
  std::set<std::string> names;
  for (const FileRecord& file : manifest.files) {
    require(file.name.find('/') == std::string::npos && file.name != "." &&
                file.name != ".." && !file.name.empty(),
            "a file lies in the folder");
    require(names.insert(file.name).second, "a file is listed once");
  }
  for (const StoredTensor& tensor : manifest.tensors) {
    check_tensor(tensor, manifest.files.size());
  }
  const std::string text = dump_manifest(manifest);
  require(dump_manifest(parse_manifest(text, "again")) == text, "the text is the same");
}

}  // namespace
}  // namespace torchtitan::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace torchtitan;
  try {
    fuzz::check_manifest(storage::parse_manifest(
        {reinterpret_cast<const char*>(data), size}, "manifest"));
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
