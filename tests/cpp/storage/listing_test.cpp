#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "storage/saved_checkpoints.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;

TEST(Inspect, LetsSettingsOfAFolderForOthersBeEditedButNotItsWeights) {
  const TemporaryFolder folder;
  const std::string staging = create_staging(folder.path(), 1, id_of(1));
  SafetensorsWriter writer(staging + "/model.safetensors", {{"w", Dtype::kI64, {}}}, {},
                           1);
  const int64_t value = 7;
  writer.append("w", std::as_bytes(std::span(&value, 1)));
  write_text(staging + "/config.json", "{}");
  Manifest manifest{.step = 1,
                    .id = id_of(1),
                    .parent = "",
                    .sequence = 1,
                    .content = Content::kHuggingFace,
                    .world_size = 1,
                    .config_hash = "",
                    .torch_version = "",
                    .torchtitan_cpp_version = "",
                    .files = {writer.finish(), hash_file(staging, "config.json")},
                    .tensors = {},
                    .scalars = base::Json::Object{},
                    .gathered = base::Json::Object{}};
  const std::string path = commit(folder.path(), manifest, {}).path;
  for (const std::string name : {"config.json", "model.safetensors"}) {
    EXPECT_EQ(inspect_checkpoint(path).problem, "");
    fs::resize_file(path + "/" + name, 99);
  }
  EXPECT_NE(inspect_checkpoint(path).problem.find("model.safetensors: expected"),
            std::string::npos);
  fs::remove(path + "/model.safetensors");
  EXPECT_EQ(inspect_checkpoint(path).problem, path + "/model.safetensors: missing");
}

// As of a process that generates beside a training that keeps one checkpoint.
TEST(List, FindsACheckpointWhileAnotherProcessSavesAndPurges) {
  constexpr int64_t kSaves = 60;
  const TemporaryFolder folder;
  save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
  std::thread writer([&] {
    for (int64_t i = 2; i <= kSaves; ++i) {
      save(folder.path(), {.step = i, .sequence = i, .parent = i - 1});
      purge(folder.path(), 1, id_of(i), {});
    }
  });
  int64_t newest = 1, num_listings = 0;
  while (newest < kSaves) {
    const FolderListing listing = list_checkpoints(folder.path());
    ++num_listings;
    int64_t found = 0;
    for (const FoundCheckpoint& each : listing.checkpoints) {
      EXPECT_EQ(each.problem, "");
      if (each.manifest) found = std::max(found, each.manifest->sequence);
    }
    EXPECT_GE(found, newest) << "listing " << num_listings;
    if (found < newest) break;
    newest = found;
  }
  writer.join();
}

TEST(List, FindsACheckpointWhileAnotherProcessReplacesIt) {
  constexpr int64_t kSaves = 60;
  const TemporaryFolder folder;
  save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
  std::thread writer([&] {
    for (int64_t i = 2; i <= kSaves; ++i) {
      fs::remove_all(
          save(folder.path(), {.step = 1, .sequence = i, .parent = 0}).set_aside);
    }
  });
  int64_t newest = 1;
  while (newest < kSaves && !testing::Test::HasFailure()) {
    const FolderListing listing = list_checkpoints(folder.path());
    EXPECT_EQ(steps_of(listing), "1");
    EXPECT_GE(listing.checkpoints.at(0).manifest->sequence, newest);
    newest = listing.checkpoints.at(0).manifest->sequence;
  }
  writer.join();
}

}  // namespace
}  // namespace torchtitan::storage
