// What a checkpoint holds: manifest.json beside its files.
//
// The text is canonical (sorted keys, no spaces), its own SHA-256 lies beside it in
// manifest.sha256 in the form that `sha256sum --check` reads. A manifest is only handed
// out when it is sound: every element of every tensor lies in exactly one stored box.
// Of every file it holds the hashes of its blocks, so that whoever reads a part
// compares that part; folders written before that have one SHA-256 of the whole file
// instead.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "storage/box.h"
#include "storage/file.h"
#include "storage/safetensors.h"

namespace torchtitan::storage {

// A box of a tensor and where its numbers lie.
struct StoredBox {
  int64_t file;     // index into Manifest::files
  std::string key;  // name of the tensor in that file
  Box box;          // place in the global tensor; never empty
};

struct StoredTensor {
  std::string name;
  std::string kind;  // "model" or "optimizer"
  Dtype dtype;
  std::vector<int64_t> shape;  // global
  std::vector<StoredBox> boxes;
};

enum class Content {
  kTraining,     // everything a run needs to go on
  kModel,        // weights only
  kHuggingFace,  // a model folder that other programs read; no tensors listed here
};

struct Manifest {
  int64_t step;
  std::string id;      // 16 hexadecimal digits, unique
  std::string parent;  // id of the checkpoint this run went on from; empty: none
  int64_t sequence;    // grows with every save into the folder, whatever the step
  Content content;
  int64_t world_size;  // ranks that wrote it
  std::string config_hash;
  std::string torch_version;
  std::string torchtitan_cpp_version;
  std::vector<FileRecord> files;
  std::vector<StoredTensor> tensors;  // sorted by name
  base::Json scalars;                 // object: part -> value, equal on all ranks
  base::Json gathered;                // object: part -> array, one value per rank
};

inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kManifestChecksumName = "manifest.sha256";

// Throws std::invalid_argument that names the tensor unless each element of a tensor of
// this shape lies in exactly one box.
void check_exact_cover(std::string_view name, const std::vector<int64_t>& shape,
                       const std::vector<StoredBox>& boxes);

// Throws std::invalid_argument (bad JSON with position, unknown or missing keys,
// another format version, unsafe names, boxes that do not cover). `source` is printed
// in errors.
Manifest parse_manifest(std::string_view text, std::string_view source);

std::string dump_manifest(const Manifest& manifest);

bool is_checkpoint_id(std::string_view text);  // 16 lowercase hexadecimal digits

}  // namespace torchtitan::storage
