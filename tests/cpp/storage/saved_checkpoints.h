// Small checkpoints whose content is known.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "base/errors.h"
#include "storage/commit.h"
#include "storage/safetensors_file.h"

namespace torchtitan::storage {

inline std::string id_of(int64_t number) {
  std::string digits = std::to_string(number);
  return std::string(16 - digits.size(), '0') + digits;
}

struct Save {
  int64_t step, sequence,
      parent;  // parent: sequence of the one it went on from, 0: none
  Content content = Content::kTraining;
};

// One scalar tensor whose value is the sequence number.
inline Committed save(const std::string& folder, const Save& what,
                      const FaultHook& hook = {}) {
  const std::string id = id_of(what.sequence);
  const std::string staging = create_staging(folder, what.step, id);
  SafetensorsWriter writer(staging + "/rank-00000.safetensors",
                           {{"w", Dtype::kI64, {}}}, {}, 1);
  writer.append("w", std::as_bytes(std::span(&what.sequence, 1)));
  return commit(folder,
                {.step = what.step,
                 .id = id,
                 .parent = what.parent == 0 ? "" : id_of(what.parent),
                 .sequence = what.sequence,
                 .content = what.content,
                 .world_size = 1,
                 .config_hash = "",
                 .torch_version = "",
                 .torchtitan_cpp_version = "",
                 .files = {writer.finish()},
                 .tensors = {{"w", "model", Dtype::kI64, {}, {{0, "w", {{}, {}}}}}},
                 .scalars = base::Json::Object{},
                 .gathered = base::Json::Object{}},
                hook);
}

// "300!,110,200": steps in the listing's order, ! for a problem.
inline std::string steps_of(const FolderListing& listing) {
  std::string text;
  for (const FoundCheckpoint& found : listing.checkpoints) {
    text +=
        base::message(text.empty() ? "" : ",", found.step, found.manifest ? "" : "!");
  }
  return text;
}

inline std::string steps_in(const std::string& folder) {
  return steps_of(list_checkpoints(folder));
}

// Value of the newest sound checkpoint after all its checksums were compared; 0: none.
inline int64_t newest_value(const std::string& folder) {
  for (const FoundCheckpoint& found : list_checkpoints(folder).checkpoints) {
    if (!found.manifest) continue;
    verify_files(found.path, *found.manifest, 0, 1);
    int64_t value = 0;
    SafetensorsReader(found.path + "/rank-00000.safetensors")
        .read_box("w", {{}, {}},
                  {std::as_writable_bytes(std::span(&value, 1)), {}, {}});
    EXPECT_EQ(value, found.manifest->sequence);
    return value;
  }
  return 0;
}

}  // namespace torchtitan::storage
