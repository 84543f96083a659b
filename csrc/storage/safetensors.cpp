#include "storage/safetensors.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "base/checked_math.h"
#include "base/json.h"

namespace torchtitan::storage {
namespace {

using base::check_value;
using base::Json;
using base::JsonReader;

constexpr std::string_view kMetadataKey = "__metadata__";

struct DtypeRow {
  std::string_view name;
  int64_t size_bytes;
};

// In the order of the enumerators.
constexpr std::array<DtypeRow, 17> kDtypes{{{"BOOL", 1},
                                            {"U8", 1},
                                            {"I8", 1},
                                            {"F8_E5M2", 1},
                                            {"F8_E4M3", 1},
                                            {"F8_E8M0", 1},
                                            {"I16", 2},
                                            {"U16", 2},
                                            {"F16", 2},
                                            {"BF16", 2},
                                            {"I32", 4},
                                            {"U32", 4},
                                            {"F32", 4},
                                            {"C64", 8},
                                            {"F64", 8},
                                            {"I64", 8},
                                            {"U64", 8}}};

std::map<std::string, std::string> read_metadata(JsonReader& reader) {
  std::map<std::string, std::string> metadata;
  reader.begin_object();
  while (const auto key = reader.next_name()) {
    const auto [place, is_new] = metadata.try_emplace(*key);
    if (!is_new) reader.fail_duplicate(*key);
    place->second = reader.read_string();
  }
  return metadata;
}

std::vector<int64_t> read_sizes(JsonReader& reader, int64_t limit) {
  std::vector<int64_t> sizes;
  reader.begin_array();
  while (reader.next_element()) {
    if (static_cast<int64_t>(sizes.size()) == limit) {
      reader.fail(base::message("at most ", limit, " integers"));
    }
    sizes.push_back(reader.read_integer());
    if (sizes.back() < 0) {
      reader.refuse(base::message("expected no negative number, found ", sizes.back()));
    }
  }
  return sizes;
}

Dtype read_dtype(JsonReader& reader) {
  const std::string name = reader.read_string();
  const std::optional<Dtype> dtype = dtype_from_name(name);
  if (!dtype) reader.refuse("unknown dtype \"" + name + '"');
  return *dtype;
}

SafetensorsHeader::Entry read_entry(JsonReader& reader, std::string name) {
  std::optional<Dtype> dtype;
  std::optional<std::vector<int64_t>> shape, offsets;
  reader.begin_object();
  while (const auto key = reader.next_name()) {
    if ((*key == "dtype" && dtype) || (*key == "shape" && shape) ||
        (*key == "data_offsets" && offsets)) {
      reader.fail_duplicate(*key);
    }
    if (*key == "dtype") {
      dtype = read_dtype(reader);
    } else if (*key == "shape") {
      shape = read_sizes(reader, kMaxDims);
    } else if (*key == "data_offsets") {
      offsets = read_sizes(reader, 2);
    } else {
      reader.refuse("expected dtype, shape or data_offsets, found \"" + *key + '"');
    }
  }
  if (!dtype || !shape || !offsets || offsets->size() != 2) {
    reader.refuse("expected dtype, shape and two data_offsets of \"" + name + '"');
  }
  return {.spec = {std::move(name), *dtype, std::move(*shape)},
          .begin = (*offsets)[0],
          .end = (*offsets)[1]};
}

// Every byte of the data belongs to exactly one tensor.
void check_cover(const SafetensorsHeader& header, int64_t data_bytes,
                 std::string_view source) {
  int64_t at = 0;
  for (const auto& [spec, begin, end] : header.entries) {
    int64_t expected = 0;
    try {
      expected = size_in_bytes(spec);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(base::message(source, ": ", error.what()));
    }
    check_value(begin == at, source, ": tensor \"", spec.name, "\" starts at byte ",
                begin, " of the data, expected ", at);
    check_value(end >= begin && end - begin == expected, source, ": tensor \"",
                spec.name, "\" takes ", expected, " bytes, but its offsets are ", begin,
                " and ", end);
    at = end;
  }
  check_value(at == data_bytes, source, ": the tensors take ", at,
              " bytes, but the file holds ", data_bytes, " bytes of data");
}

}  // namespace

std::string_view dtype_name(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)].name;
}

std::optional<Dtype> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    if (kDtypes[i].name == name) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

int64_t dtype_size_bytes(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)].size_bytes;
}

int64_t size_in_bytes(const TensorSpec& spec) {
  for (const int64_t dim : spec.shape) {
    check_value(dim >= 0, "tensor \"", spec.name, "\" has the dim ", dim);
  }
  try {
    return base::checked_mul(base::checked_product(spec.shape),
                             dtype_size_bytes(spec.dtype));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(
        base::message("size of tensor \"", spec.name, "\": ", error.what()));
  }
}

SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes,
                                           std::string_view source) {
  check_value(static_cast<int64_t>(text.size()) <= kMaxHeaderBytes, source,
              ": header of ", text.size(), " bytes, expected at most ",
              kMaxHeaderBytes);
  check_value(!text.empty() && text[0] == '{', source,
              ": the header starts not with {");
  SafetensorsHeader header;
  bool has_metadata = false;
  std::unordered_set<std::string> names;
  JsonReader reader(text, {.name = source, .max_depth = 3});
  reader.begin_object();
  while (auto name = reader.next_name()) {
    if (*name == kMetadataKey) {
      if (std::exchange(has_metadata, true)) reader.fail_duplicate(*name);
      header.metadata = read_metadata(reader);
      continue;
    }
    if (!names.insert(*name).second) reader.fail_duplicate(*name);
    header.entries.push_back(read_entry(reader, std::move(*name)));
  }
  reader.finish();
  std::sort(header.entries.begin(), header.entries.end(),
            [](const auto& a, const auto& b) {
              return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
            });
  check_cover(header, data_bytes, source);
  return header;
}

std::string safetensors_header(const std::vector<TensorSpec>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  Json::Object header;
  if (!metadata.empty()) {
    Json::Object values;
    for (const auto& [key, value] : metadata) values.emplace(key, value);
    header.emplace(kMetadataKey, std::move(values));
  }
  int64_t at = 0;
  for (const TensorSpec& spec : tensors) {
    check_value(spec.name != kMetadataKey, "safetensors: a tensor may not be named ",
                kMetadataKey);
    check_value(static_cast<int64_t>(spec.shape.size()) <= kMaxDims, "safetensors: \"",
                spec.name, "\" has ", spec.shape.size(), " dims, expected at most ",
                kMaxDims);
    const int64_t end = base::checked_add(at, size_in_bytes(spec));
    const Json::Object entry{
        {"dtype", dtype_name(spec.dtype)},
        {"shape", Json::Array(spec.shape.begin(), spec.shape.end())},
        {"data_offsets", Json::Array{at, end}}};
    check_value(header.emplace(spec.name, entry).second, "safetensors: two tensors \"",
                spec.name, '"');
    at = end;
  }
  std::string text = Json(std::move(header)).dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  check_value(static_cast<int64_t>(text.size()) <= kMaxHeaderBytes,
              "safetensors: header of ", text.size(), " bytes, expected at most ",
              kMaxHeaderBytes);
  return text;
}

}  // namespace torchtitan::storage
