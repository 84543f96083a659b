#include "storage/commit.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <set>

#include "storage/saved_checkpoints.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;
using base::Json;

TEST(Commit, MakesACheckpointThatIsFoundAndVerifies) {
  const TemporaryFolder root;
  const std::string folder = root / "deep/checkpoint";
  EXPECT_EQ(steps_in(folder), "");
  save(folder, {.step = 10, .sequence = 1, .parent = 0});
  save(folder, {.step = 9, .sequence = 2, .parent = 1});
  EXPECT_EQ(steps_in(folder), "9,10");  // newest is what was saved last
  EXPECT_EQ(newest_value(folder), 2);
}

TEST(Commit, RefusesAStagingFolderThatIsNotWhatTheManifestSays) {
  const TemporaryFolder folder;
  const auto attempt = [&](int64_t sequence, auto change) -> std::string {
    const auto hook = [&](std::string_view point) {
      if (point == "before manifest") throw std::runtime_error("reached");
    };
    const std::string staging = folder / ("step-1.tmp-" + id_of(sequence));
    const std::string id = id_of(sequence);
    create_staging(folder.path(), 1, id);
    write_text(staging + "/a", "12345");
    Manifest manifest{.step = 1,
                      .id = id,
                      .parent = "",
                      .sequence = sequence,
                      .content = Content::kHuggingFace,
                      .world_size = 1,
                      .config_hash = "",
                      .torch_version = "",
                      .torchtitan_cpp_version = "",
                      .files = {hash_file(staging, "a")},
                      .tensors = {},
                      .scalars = Json::Object{},
                      .gathered = Json::Object{}};
    change(staging, manifest);
    try {
      commit(folder.path(), manifest, hook);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto none = [](const std::string&, Manifest&) {};
  EXPECT_EQ(attempt(1, none), "reached");
  EXPECT_NE(attempt(2, [](const std::string& staging,
                          Manifest&) { write_text(staging + "/b", ""); })
                .find("holds \"b\""),
            std::string::npos);
  EXPECT_NE(attempt(3, [](const std::string& staging,
                          Manifest&) { fs::remove(staging + "/a"); })
                .find("a: missing"),
            std::string::npos);
  EXPECT_NE(attempt(4, [](const std::string& staging,
                          Manifest&) { fs::resize_file(staging + "/a", 4); })
                .find("expected 5 bytes, found 4"),
            std::string::npos);
  EXPECT_EQ(steps_in(folder.path()), "");
}

// A process that exits at any point of a save, of one that replaces, and of a purge.
TEST(Commit, DyingAtAnyPointNeverLosesAnAcknowledgedCheckpoint) {
  const char* const points[] = {"before manifest", "manifest written", "before rename",
                                "renamed",         "exchanged",        "replaced",
                                "durable",         "purge renamed",    "purge deleted"};
  for (const bool replaces : {false, true}) {
    for (const std::string point : points) {
      const TemporaryFolder folder;
      for (int64_t i = 1; i <= 3; ++i) {
        save(folder.path(), {.step = i, .sequence = i, .parent = i - 1});
      }
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        const auto die = [&](std::string_view reached) {
          if (reached == point) _exit(42);
        };
        save(folder.path(), {.step = replaces ? 3 : 4, .sequence = 4, .parent = 3},
             die);
        purge(folder.path(), 2, id_of(4), die);
        _exit(0);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      const bool other_path =
          replaces ? point == "renamed" : point == "exchanged" || point == "replaced";
      // Where step 3 was replaced, its own parent is gone from the line of step 4.
      const bool no_purge = replaces && point.starts_with("purge");
      ASSERT_EQ(WEXITSTATUS(status), other_path || no_purge ? 0 : 42) << point;
      const int64_t newest = newest_value(folder.path());
      EXPECT_GE(newest, 3) << point;
      for (const auto& found : list_checkpoints(folder.path()).checkpoints) {
        EXPECT_EQ(found.problem, "");
      }
      // The next save cleans up and works.
      clean_up(folder.path());
      save(folder.path(), {.step = 5, .sequence = 5, .parent = newest});
      EXPECT_EQ(newest_value(folder.path()), 5);
      std::set<int64_t> left;  // sequence numbers
      for (const auto& entry : fs::directory_iterator(folder.path())) {
        EXPECT_TRUE(entry.path().filename().string().starts_with("step-"));
        EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos);
        left.insert(inspect_checkpoint(entry.path()).manifest->sequence);
      }
      EXPECT_TRUE(left.contains(3)) << point;  // replaced or not
    }
  }
}

TEST(Commit, FailureLeavesOlderCheckpointsAndCanBeDiscarded) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
  const auto fail = [](std::string_view point) {
    if (point == "manifest written") throw std::runtime_error("disk");
  };
  EXPECT_THROW(save(folder.path(), {.step = 2, .sequence = 2, .parent = 1}, fail),
               std::runtime_error);
  EXPECT_EQ(newest_value(folder.path()), 1);
  discard_staging(folder.path(), 2, id_of(2));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(Commit, KeepsWhatItReplacesUnderAnotherName) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 7, .sequence = 1, .parent = 0});
  const Committed done = save(folder.path(), {.step = 7, .sequence = 2, .parent = 0});
  EXPECT_EQ(done.path, folder / "step-7");
  EXPECT_EQ(done.set_aside, folder / ("step-7.replaced-by-" + id_of(2)));
  EXPECT_EQ(newest_value(folder.path()), 2);
  EXPECT_EQ(inspect_checkpoint(done.set_aside).manifest->sequence, 1);
  EXPECT_TRUE(list_checkpoints(folder.path()).ignored.empty());
  EXPECT_EQ(save(folder.path(), {.step = 8, .sequence = 3, .parent = 2}).set_aside, "");
  EXPECT_EQ(purge(folder.path(), 1, id_of(3), {}).steps, std::vector<int64_t>{7});
  EXPECT_TRUE(fs::exists(done.set_aside));
}

TEST(Commit, AFailureBehindTheExchangeKeepsBoth) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 7, .sequence = 1, .parent = 0});
  const auto fail = [](std::string_view point) {
    if (point == "exchanged") throw std::runtime_error("disk");
  };
  EXPECT_THROW(save(folder.path(), {.step = 7, .sequence = 2, .parent = 0}, fail),
               std::runtime_error);
  discard_staging(folder.path(), 7, id_of(2));
  EXPECT_EQ(newest_value(folder.path()), 2);
  const auto aside = folder / ("step-7.replaced-by-" + id_of(2));
  EXPECT_EQ(inspect_checkpoint(aside).manifest->sequence, 1);
}

// As on a file system that cannot exchange folders.
TEST(Commit, DyingBetweenTwoRenamesLosesNothing) {
  const auto fail = [](std::string_view point) {
    if (point == "before rename") throw std::runtime_error("died");
  };
  for (const bool discards : {false, true}) {
    const TemporaryFolder folder;
    save(folder.path(), {.step = 7, .sequence = 1, .parent = 0});
    EXPECT_THROW(save(folder.path(), {.step = 7, .sequence = 2, .parent = 0}, fail),
                 std::runtime_error);
    fs::rename(folder / "step-7", folder / ("step-7.replaced-by-" + id_of(2)));
    EXPECT_EQ(newest_value(folder.path()), 1);
    EXPECT_EQ(list_checkpoints(folder.path()).checkpoints.at(0).step, 7);
    if (discards) {
      discard_staging(folder.path(), 7, id_of(2));
      discard_staging(folder.path(), 7, id_of(2));  // nothing is left to discard
    } else {
      clean_up(folder.path());
    }
    EXPECT_EQ(inspect_checkpoint(folder / "step-7").manifest->sequence, 1);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
  }
}

TEST(Commit, MovesADamagedCheckpointOrAForeignFolderOutOfTheWay) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 7, .sequence = 1, .parent = 0});
  fs::resize_file(folder / "step-7/rank-00000.safetensors", 3);
  EXPECT_EQ(steps_in(folder.path()), "7!");
  save(folder.path(), {.step = 7, .sequence = 2, .parent = 0});
  EXPECT_EQ(newest_value(folder.path()), 2);

  fs::create_directory(folder / "step-8");
  write_text(folder / "step-8/notes", "mine");
  const auto done = save(folder.path(), {.step = 8, .sequence = 3, .parent = 2});
  EXPECT_EQ(newest_value(folder.path()), 3);
  EXPECT_EQ(read_text(done.set_aside + "/notes", 10), "mine");
}

TEST(List, TakesOnlyRealFoldersNamedStepN) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 3, .sequence = 1, .parent = 0});
  for (const char* const name :
       {"step-9.bak", "old-step-99", "step-09", "step-", "step--1", "step-+1",
        "step-1e3", "step-4 ", "step-99999999999999999999", "Step-5"}) {
    fs::copy(folder / "step-3", folder / name, fs::copy_options::recursive);
  }
  fs::create_directory_symlink(folder / "step-3", folder / "step-50");
  write_text(folder / "step-60", "a file");
  fs::create_directory(folder / "step-70");
  save(folder.path(), {.step = 2, .sequence = 2, .parent = 1});
  const FolderListing listing = list_checkpoints(folder.path());
  EXPECT_EQ(steps_of(listing), "70!,2,3");
  EXPECT_EQ(listing.checkpoints[0].problem, folder / "step-70: holds no manifest.json");
  EXPECT_EQ(listing.ignored.size(), 11u);  // all but "Step-5"
}

TEST(List, NoticesARenamedCheckpoint) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 3, .sequence = 1, .parent = 0});
  fs::rename(folder / "step-3", folder / "step-300");
  EXPECT_EQ(steps_in(folder.path()), "300!");
}

TEST(Verify, FindsEveryFlippedBitAndTruncation) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
  std::mt19937 random(4);
  for (const std::string name :
       {"rank-00000.safetensors", "manifest.json", "manifest.sha256"}) {
    const std::string path = folder / ("step-1/" + name);
    const std::string good = read_text(path, 1 << 20);
    const auto is_detected = [&](const std::string& text) {
      fs::remove(path);
      write_text(path, text);
      const FoundCheckpoint found = list_checkpoints(folder.path()).checkpoints[0];
      if (!found.manifest) return true;
      try {
        verify_files(found.path, *found.manifest, 0, 1);
      } catch (const std::invalid_argument&) {
        return true;
      }
      return false;
    };
    EXPECT_FALSE(is_detected(good));
    for (int trial = 0; trial < 100; ++trial) {
      std::string bad = good;
      const size_t bit = random() % (bad.size() * 8);
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
      EXPECT_TRUE(is_detected(bad)) << name << " bit " << bit;
    }
    for (size_t length = 0; length < good.size(); length += 1 + good.size() / 20) {
      EXPECT_TRUE(is_detected(good.substr(0, length))) << name << " to " << length;
    }
    is_detected(good);
  }
}

TEST(Purge, KeepsTheNewestOfTheLineAndWhatIsNotItsOwn) {
  const TemporaryFolder folder;
  // 100 200 300, back to 100, then 110 120 130: two lines from 100 on.
  save(folder.path(), {.step = 100, .sequence = 1, .parent = 0});
  save(folder.path(), {.step = 200, .sequence = 2, .parent = 1});
  save(folder.path(), {.step = 300, .sequence = 3, .parent = 2});
  save(folder.path(), {.step = 110, .sequence = 4, .parent = 1});
  EXPECT_EQ(newest_value(folder.path()), 4);
  EXPECT_EQ(purge(folder.path(), 2, id_of(4), {}).steps, std::vector<int64_t>{});
  save(folder.path(), {.step = 120, .sequence = 5, .parent = 4});
  save(folder.path(), {.step = 130, .sequence = 6, .parent = 5});
  fs::create_directory(folder / "step-5");
  EXPECT_EQ(purge(folder.path(), 2, id_of(6), {}).steps,
            (std::vector<int64_t>{100, 110}));
  EXPECT_EQ(steps_in(folder.path()), "5!,130,120,300,200");
}

TEST(Purge, CountsOnlyCheckpointsThatTrainingCanGoOnFrom) {
  const TemporaryFolder folder;
  for (int64_t i = 1; i <= 3; ++i) {
    save(folder.path(), {.step = i, .sequence = i, .parent = i - 1});
  }
  save(folder.path(),
       {.step = 4, .sequence = 4, .parent = 3, .content = Content::kModel});
  EXPECT_EQ(purge(folder.path(), 1, id_of(4), {}).steps, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(steps_in(folder.path()), "4,3");
}

TEST(Purge, KeepsWhatHoldsMoreThanACheckpoint) {
  const TemporaryFolder folder;
  for (int64_t i = 1; i <= 4; ++i) {
    save(folder.path(), {.step = i, .sequence = i, .parent = i - 1});
  }
  write_text(folder / "step-1/notes", "mine");
  fs::create_directory(folder / "step-2/plots");
  const Purged purged = purge(folder.path(), 1, id_of(4), {});
  EXPECT_EQ(purged.steps, std::vector<int64_t>{3});
  EXPECT_EQ(purged.kept,
            (std::vector<std::string>{folder / "step-1", folder / "step-2"}));
  EXPECT_EQ(read_text(folder / "step-1/notes", 10), "mine");
  EXPECT_EQ(steps_in(folder.path()), "4,2,1");
}

// Its manifest lost the checksum after a save of the same step was killed.
TEST(Leftovers, OfAStepWhoseCheckpointIsDamagedAreRemoved) {
  const TemporaryFolder folder;
  save(folder.path(), {.step = 5, .sequence = 1, .parent = 0});
  fs::remove(folder / "step-5/manifest.sha256");
  create_staging(folder.path(), 5, id_of(2));
  EXPECT_EQ(clean_up(folder.path()).removed,
            std::vector<std::string>{"step-5.tmp-" + id_of(2)});
  EXPECT_EQ(steps_in(folder.path()), "5!");
}

TEST(Leftovers, OnlyFoldersOfItsOwnNamesAreRemoved) {
  const TemporaryFolder folder;
  const std::string id = id_of(1);
  for (const std::string& name :
       {"step-1.tmp-" + id, ".trash-step-2-" + id, std::string("step-1.tmp-short"),
        std::string(".trash-mine"), "mine-step-1.tmp-" + id}) {
    fs::create_directory(folder / name);
  }
  const TemporaryFolder elsewhere;
  write_text(elsewhere / "keep", "x");
  fs::create_directory_symlink(elsewhere.path(), folder / ("step-5.tmp-" + id));
  fs::create_directory_symlink(elsewhere.path(),
                               folder / ("step-1.tmp-" + id + "/link"));
  EXPECT_EQ(clean_up(folder.path()).removed,
            (std::vector<std::string>{".trash-step-2-" + id, "step-1.tmp-" + id}));
  EXPECT_TRUE(fs::exists(elsewhere / "keep"));
  EXPECT_TRUE(fs::exists(folder / ".trash-mine"));
}

}  // namespace
}  // namespace torchtitan::storage
