#include "storage/manifest.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <set>

#include "storage/checksum.h"

namespace torchtitan::storage {
namespace {

using base::check_value;
using base::Json;

constexpr std::string_view kFormat = "torchtitan_cpp checkpoint";
constexpr int64_t kFormatVersion = 1;
constexpr int64_t kMaxDepth = 64;  // of scalars, which hold a user's own state
constexpr std::array<std::string_view, 3> kContents{"training", "model", "huggingface"};

void check_keys(const Json& object, std::initializer_list<std::string_view> known) {
  for (const auto& [name, value] : object.as_object()) {
    check_value(std::find(known.begin(), known.end(), name) != known.end(),
                "unknown key \"", name, '"');
  }
}

std::vector<int64_t> read_integers(const Json& value) {
  std::vector<int64_t> integers;
  for (const Json& element : value.as_array()) integers.push_back(element.as_integer());
  return integers;
}

Json::Array to_array(const std::vector<int64_t>& integers) {
  return {integers.begin(), integers.end()};
}

bool is_lower_hex(std::string_view text, size_t length) {
  return text.size() == length &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

FileRecord read_file_record(const Json& value) {
  check_keys(value, {"name", "size_bytes", "sha256", "block_sha256"});
  const Json* const blocks = value.find("block_sha256");
  FileRecord record{.name = value.at("name").as_string(),
                    .size_bytes = value.at("size_bytes").as_integer(),
                    .sha256 = value.at("sha256").as_string(),
                    .blocks = blocks == nullptr ? "" : blocks->as_string()};
  check_plain_name(record.name, "files");
  check_value(record.name != kManifestName && record.name != kManifestChecksumName,
              "files: \"", record.name, "\" is the manifest's own name");
  check_value(record.size_bytes >= 0 && is_lower_hex(record.sha256, 64), "file \"",
              record.name, "\": bad size or sha256");
  if (record.blocks.empty()) return record;
  check_value(is_lower_hex(record.blocks, 64 * num_hashed_blocks(record.size_bytes)) &&
                  sha256(std::as_bytes(std::span(record.blocks))) == record.sha256,
              "file \"", record.name, "\": bad block_sha256");
  return record;
}

StoredTensor read_tensor(const std::string& name, const Json& value, size_t num_files) {
  check_keys(value, {"kind", "dtype", "shape", "boxes"});
  const std::string& dtype_text = value.at("dtype").as_string();
  const std::optional<Dtype> dtype = dtype_from_name(dtype_text);
  check_value(dtype.has_value(), "tensor \"", name, "\": unknown dtype \"", dtype_text,
              '"');
  StoredTensor tensor{.name = name,
                      .kind = value.at("kind").as_string(),
                      .dtype = *dtype,
                      .shape = read_integers(value.at("shape")),
                      .boxes = {}};
  check_value(tensor.kind == "model" || tensor.kind == "optimizer", "tensor \"", name,
              "\": expected kind model or optimizer, found \"", tensor.kind, '"');
  size_in_bytes({name, *dtype, tensor.shape});  // refuses what overflows
  for (const Json& element : value.at("boxes").as_array()) {
    check_keys(element, {"file", "key", "offset", "size"});
    const int64_t file = element.at("file").as_integer();
    check_value(file >= 0 && file < static_cast<int64_t>(num_files), "tensor \"", name,
                "\": no file ", file);
    tensor.boxes.push_back(
        {file,
         element.at("key").as_string(),
         {read_integers(element.at("offset")), read_integers(element.at("size"))}});
  }
  check_exact_cover(name, tensor.shape, tensor.boxes);
  return tensor;
}

Content read_content(const Json& value) {
  const auto place = std::find(kContents.begin(), kContents.end(), value.as_string());
  check_value(place != kContents.end(), "unknown content \"", value.as_string(), '"');
  return static_cast<Content>(place - kContents.begin());
}

Manifest read_manifest(const Json& value) {
  check_value(value.at("format").as_string() == kFormat, "expected the format \"",
              kFormat, '"');
  const int64_t version = value.at("format_version").as_integer();
  check_value(version == kFormatVersion, "expected format_version ", kFormatVersion,
              ", found ", version);
  check_keys(value,
             {"format", "format_version", "step", "id", "parent", "sequence", "content",
              "world_size", "config_hash", "torch_version", "torchtitan_cpp_version",
              "files", "tensors", "scalars", "gathered"});
  Manifest manifest{
      .step = value.at("step").as_integer(),
      .id = value.at("id").as_string(),
      .parent = value.at("parent").as_string(),
      .sequence = value.at("sequence").as_integer(),
      .content = read_content(value.at("content")),
      .world_size = value.at("world_size").as_integer(),
      .config_hash = value.at("config_hash").as_string(),
      .torch_version = value.at("torch_version").as_string(),
      .torchtitan_cpp_version = value.at("torchtitan_cpp_version").as_string(),
      .files = {},
      .tensors = {},
      .scalars = value.at("scalars").as_object(),
      .gathered = value.at("gathered").as_object()};
  check_value(manifest.step >= 0 && manifest.sequence >= 0 && manifest.world_size >= 1,
              "step ", manifest.step, ", sequence ", manifest.sequence,
              " or world_size ", manifest.world_size, " out of range");
  check_value(is_checkpoint_id(manifest.id), "bad id \"", manifest.id, '"');
  check_value(manifest.parent.empty() || is_checkpoint_id(manifest.parent),
              "bad parent \"", manifest.parent, '"');
  std::set<std::string> names;
  for (const Json& element : value.at("files").as_array()) {
    manifest.files.push_back(read_file_record(element));
    check_value(names.insert(manifest.files.back().name).second, "file \"",
                manifest.files.back().name, "\" is listed twice");
  }
  for (const auto& [name, element] : value.at("tensors").as_object()) {
    manifest.tensors.push_back(read_tensor(name, element, manifest.files.size()));
  }
  for (const auto& [part, values] : manifest.gathered.as_object()) {
    check_value(static_cast<int64_t>(values.as_array().size()) == manifest.world_size,
                "gathered \"", part, "\": expected ", manifest.world_size, " values");
  }
  return manifest;
}

Json dump_tensor(const StoredTensor& tensor) {
  Json::Array boxes;
  for (const StoredBox& stored : tensor.boxes) {
    boxes.push_back(Json::Object{{"file", stored.file},
                                 {"key", stored.key},
                                 {"offset", to_array(stored.box.offset)},
                                 {"size", to_array(stored.box.size)}});
  }
  return Json::Object{{"kind", tensor.kind},
                      {"dtype", dtype_name(tensor.dtype)},
                      {"shape", to_array(tensor.shape)},
                      {"boxes", std::move(boxes)}};
}

bool overlap(const Box& a, const Box& b) {
  for (size_t d = 0; d < a.size.size(); ++d) {
    if (a.offset[d] + a.size[d] <= b.offset[d] ||
        b.offset[d] + b.size[d] <= a.offset[d]) {
      return false;
    }
  }
  return true;
}

std::string text_of(const Box& box) {
  std::string text = "[";
  for (size_t d = 0; d < box.size.size(); ++d) {
    text += base::message(d == 0 ? "" : ", ", box.offset[d], ':',
                          box.offset[d] + box.size[d]);
  }
  return text + "]";
}

}  // namespace

void check_exact_cover(std::string_view name, const std::vector<int64_t>& shape,
                       const std::vector<StoredBox>& boxes) {
  const std::string where = base::message("tensor \"", name, '"');
  int64_t num_elements = 0;
  std::vector<const Box*> sorted;
  for (const StoredBox& stored : boxes) {
    check_inside(stored.box, shape, where);
    const int64_t count = base::checked_product(stored.box.size);
    check_value(count > 0, where, ": empty box ", text_of(stored.box));
    num_elements = base::checked_add(num_elements, count);
    sorted.push_back(&stored.box);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Box* a, const Box* b) { return a->offset < b->offset; });
  for (size_t i = 0; i < sorted.size(); ++i) {
    for (size_t j = i + 1; j < sorted.size(); ++j) {
      const Box &a = *sorted[i], &b = *sorted[j];
      // Sorted by the first offset: none of the rest can meet `a` any more.
      if (!shape.empty() && b.offset[0] >= a.offset[0] + a.size[0]) break;
      check_value(!overlap(a, b), where, ": boxes ", text_of(a), " and ", text_of(b),
                  " overlap");
    }
  }
  // Disjoint boxes inside the tensor with as many elements cover it.
  const int64_t expected = base::checked_product(shape);
  check_value(num_elements == expected, where, ": the boxes hold ", num_elements,
              " of its ", expected, " elements");
}

bool is_checkpoint_id(std::string_view text) { return is_lower_hex(text, 16); }

Manifest parse_manifest(std::string_view text, std::string_view source) {
  const Json value = base::parse_json(text, {.name = source, .max_depth = kMaxDepth});
  try {
    return read_manifest(value);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(base::message(source, ": ", error.what()));
  }
}

std::string dump_manifest(const Manifest& manifest) {
  Json::Array files;
  for (const FileRecord& file : manifest.files) {
    Json::Object record{
        {"name", file.name}, {"size_bytes", file.size_bytes}, {"sha256", file.sha256}};
    if (!file.blocks.empty()) record.emplace("block_sha256", file.blocks);
    files.push_back(std::move(record));
  }
  Json::Object tensors;
  for (const StoredTensor& tensor : manifest.tensors) {
    tensors.emplace(tensor.name, dump_tensor(tensor));
  }
  return Json(
             Json::Object{{"format", kFormat},
                          {"format_version", kFormatVersion},
                          {"step", manifest.step},
                          {"id", manifest.id},
                          {"parent", manifest.parent},
                          {"sequence", manifest.sequence},
                          {"content", kContents[static_cast<size_t>(manifest.content)]},
                          {"world_size", manifest.world_size},
                          {"config_hash", manifest.config_hash},
                          {"torch_version", manifest.torch_version},
                          {"torchtitan_cpp_version", manifest.torchtitan_cpp_version},
                          {"files", std::move(files)},
                          {"tensors", std::move(tensors)},
                          {"scalars", manifest.scalars},
                          {"gathered", manifest.gathered}})
      .dump();
}

}  // namespace torchtitan::storage
