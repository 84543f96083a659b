// The safetensors format (huggingface/safetensors, README "Format"):
//   8 bytes   little-endian length of the header
//   header    JSON {"<name>": {"dtype", "shape", "data_offsets": [begin, end]}, ..,
//             "__metadata__": {"<key>": "<string>"}}, padded with spaces
//   data      the tensors, row-major, little-endian, without holes
//
// Read here more strictly than by the reference implementation: what it refuses is
// refused, and so are unknown keys and more than 64 dims. Names of tensors are free
// text and never used as paths.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchtitan::storage {

enum class Dtype : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64
};

std::string_view dtype_name(Dtype dtype);                     // "BF16"
std::optional<Dtype> dtype_from_name(std::string_view name);  // nullopt: unknown
int64_t dtype_size_bytes(Dtype dtype);

struct TensorSpec {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;  // empty: scalar
};

// Bytes of the tensor; throws std::invalid_argument on a negative dim or overflow.
int64_t size_in_bytes(const TensorSpec& spec);

struct SafetensorsHeader {
  struct Entry {
    TensorSpec spec;
    int64_t begin, end;  // bytes from the start of the data
  };
  std::vector<Entry> entries;  // in the order of their data
  std::map<std::string, std::string> metadata;
};

inline constexpr int64_t kMaxHeaderBytes = 100'000'000;
inline constexpr int64_t kMaxDims = 64;

// Parses and checks the header text of a file whose data take `data_bytes`. Throws
// std::invalid_argument that starts with `source` and names the tensor.
SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes,
                                           std::string_view source);

// Header text, padded to a multiple of 8 bytes, for tensors stored in this order.
std::string safetensors_header(const std::vector<TensorSpec>& tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace torchtitan::storage
