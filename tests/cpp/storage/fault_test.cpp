// What the system may refuse or change at any one operation of a save, load or purge.
#include "storage/fault.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>

#include "storage/saved_checkpoints.h"
#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

namespace fs = std::filesystem;

struct Error {
  const char* name;
  int code;
};
constexpr Error kErrors[] = {
    {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EROFS", EROFS}, {"EDQUOT", EDQUOT}};

// Ends with a scope, however that is left.
class FaultScope {
 public:
  FaultScope(const std::string& point, const char* kind, int64_t number) {
    set_fault(base::message(point, ':', kind, ':', number));
  }
  ~FaultScope() { set_fault(""); }
};

size_t num_entries(const std::string& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), {}));
}

// Runs `trial` with the fault at the 1st, 2nd, .. operation until there are no more.
// `trial` returns whether the fault has happened. Returns how often it has.
int64_t at_every_operation(const std::function<bool(int64_t number)>& trial) {
  int64_t number = 1;
  while (trial(number)) ++number;
  return number - 1;
}

// What a save into a folder with a checkpoint throws; nullopt if it succeeds.
std::optional<FileError> failure_of(const std::string& folder, const Save& what,
                                    const std::string& point, const Error& error,
                                    int64_t number, bool& happened) {
  std::optional<FileError> failure;
  const FaultScope scope(point, error.name, number);
  try {
    save(folder, what);
  } catch (const FileError& caught) {
    failure = caught;
  }
  happened = fault_has_happened();
  return failure;
}

void check_text(const FileError& failure, const Error& error, const std::string& point,
                const std::string& folder) {
  const std::string text = failure.what();
  EXPECT_EQ(failure.code(), error.code);
  EXPECT_TRUE(failure.path().starts_with(folder)) << failure.path();
  EXPECT_TRUE(text.starts_with(failure.path())) << text;
  EXPECT_NE(text.find(std::strerror(error.code)), std::string::npos) << text;
  const bool is_full = error.code == ENOSPC || error.code == EDQUOT;
  EXPECT_EQ(text.find(" bytes free)") != std::string::npos, is_full) << text;
  if (point == "write") {
    EXPECT_NE(text.find("cannot write "), std::string::npos) << text;
    EXPECT_NE(text.find(" bytes: "), std::string::npos) << text;
  }
}

struct Operation {
  const char* point;
  int64_t least;  // times that a save does it
};

TEST(Fault, AnyRefusedOperationFailsTheSaveAndKeepsTheOlderCheckpoint) {
  // create: the file, manifest, checksum. write: the same. sync: those files, staging
  // folder, folder.
  for (const auto& [point, least] :
       {Operation{"mkdir", 1}, Operation{"create", 3}, Operation{"write", 3},
        Operation{"sync", 5}, Operation{"rename", 1}}) {
    for (const Error& error : kErrors) {
      const int64_t times = at_every_operation([&](int64_t number) {
        const TemporaryFolder folder;
        save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
        bool happened = false;
        const auto failure =
            failure_of(folder.path(), {.step = 2, .sequence = 2, .parent = 1}, point,
                       error, number, happened);
        EXPECT_EQ(failure.has_value(), happened)
            << point << " " << error.name << " " << number;
        if (!failure) return happened;
        check_text(*failure, error, point, folder.path());
        EXPECT_EQ(newest_value(folder.path()), 1);
        discard_staging(folder.path(), 2, id_of(2));
        EXPECT_EQ(num_entries(folder.path()), 1u);
        // The same step is saved once the system allows it again.
        save(folder.path(), {.step = 2, .sequence = 3, .parent = 1});
        EXPECT_EQ(newest_value(folder.path()), 3);
        return true;
      });
      EXPECT_GE(times, least) << point;
    }
  }
}

TEST(Fault, FoldersAboveTheCheckpointsAreMadeDurable) {
  for (const auto& [number, is_reached] : {std::pair{1, true}, {2, true}, {3, false}}) {
    const TemporaryFolder folder;
    const FaultScope scope("sync", "EIO", number);
    if (is_reached) {
      EXPECT_THROW(create_staging(folder / "a/b", 1, id_of(1)), FileError);
    } else {
      create_staging(folder / "a/b", 1, id_of(1));
    }
    EXPECT_EQ(fault_has_happened(), is_reached);
  }
}

TEST(Fault, AnyRefusedOperationOfASaveThatReplacesKeepsWhatWasThere) {
  for (const std::string point : {"mkdir", "create", "write", "sync", "rename"}) {
    const int64_t times = at_every_operation([&](int64_t number) {
      const TemporaryFolder folder;
      save(folder.path(), {.step = 7, .sequence = 1, .parent = 0});
      bool happened = false;
      const auto failure =
          failure_of(folder.path(), {.step = 7, .sequence = 2, .parent = 0}, point,
                     kErrors[0], number, happened);
      EXPECT_EQ(failure.has_value(), happened) << point << " " << number;
      clean_up(folder.path());
      // Once exchanged, the new one is whole and the old one has another name.
      const int64_t newest = newest_value(folder.path());
      const std::string aside = folder / ("step-7.replaced-by-" + id_of(2));
      EXPECT_EQ(num_entries(folder.path()), newest == 1 ? 1u : 2u);
      if (newest == 2) {
        EXPECT_EQ(inspect_checkpoint(aside).manifest->sequence, 1);
      }
      return happened;
    });
    EXPECT_GE(times, 1) << point;
  }
}

TEST(Fault, AnyRefusedOperationOfAPurgeLeavesWhatIsKept) {
  for (const std::string point :
       {"rename", "sync", "remove", "open", "purge renamed", "purge deleted"}) {
    const int64_t times = at_every_operation([&](int64_t number) {
      const TemporaryFolder folder;
      for (int64_t i = 1; i <= 4; ++i) {
        save(folder.path(), {.step = i, .sequence = i, .parent = i - 1});
      }
      bool happened = false;
      {
        const FaultScope scope(point, "EIO", number);
        try {
          purge(folder.path(), 2, id_of(4), {});
          // What cannot be read is damaged: the line ends there, and it is kept.
          EXPECT_TRUE(point == "open" || !fault_has_happened()) << point << number;
        } catch (const FileError& error) {
          EXPECT_EQ(error.code(), EIO);
        }
        happened = fault_has_happened();
      }
      EXPECT_EQ(newest_value(folder.path()), 4);
      EXPECT_EQ(inspect_checkpoint(folder / "step-3").manifest->sequence, 3);
      for (const auto& found : list_checkpoints(folder.path()).checkpoints) {
        EXPECT_EQ(found.problem, "");
      }
      clean_up(folder.path());
      purge(folder.path(), 2, id_of(4), {});
      EXPECT_LE(num_entries(folder.path()), 3u);
      return happened;
    });
    EXPECT_GE(times, 2) << point;
  }
}

// As a run does: the newest that is sound, every byte of it compared before it is used.
std::optional<int64_t> load_newest(const std::string& folder) {
  for (const auto& found : list_checkpoints(folder).checkpoints) {
    if (!found.manifest) continue;
    try {
      verify_files(found.path, *found.manifest, 0, 1);
    } catch (const std::runtime_error&) {
      continue;
    } catch (const std::invalid_argument&) {
      continue;
    }
    return found.manifest->sequence;
  }
  return std::nullopt;
}

TEST(Fault, ABitFlippedInAnyWriteIsDetectedAndTheOlderCheckpointLoaded) {
  const int64_t times = at_every_operation([](int64_t number) {
    const TemporaryFolder folder;
    save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
    bool happened = false;
    {
      const FaultScope scope("write", "flip", number);
      save(folder.path(), {.step = 2, .sequence = 2, .parent = 1});
      happened = fault_has_happened();
    }
    EXPECT_EQ(load_newest(folder.path()), happened ? 1 : 2) << number;
    return happened;
  });
  EXPECT_GE(times, 3);
}

TEST(Fault, ReadsThatFailOrAreWrongAreNeverUsed) {
  for (const char* const kind : {"flip", "EIO"}) {
    for (const std::string point : {"read", "open"}) {
      if (point == "open" && std::string(kind) == "flip") continue;
      const int64_t times = at_every_operation([&](int64_t number) {
        const TemporaryFolder folder;
        save(folder.path(), {.step = 1, .sequence = 1, .parent = 0});
        save(folder.path(), {.step = 2, .sequence = 2, .parent = 1});
        const FaultScope scope(point, kind, number);
        const std::optional<int64_t> loaded = load_newest(folder.path());
        EXPECT_TRUE(loaded == 1 || loaded == 2);
        // Files of step 1 are read first, then those of step 2, then the data.
        if (fault_has_happened() && number > 2) {
          EXPECT_EQ(loaded, 1) << number;
        }
        return fault_has_happened();
      });
      EXPECT_EQ(times, 5) << point;
    }
  }
}

TEST(Fault, ATextThatIsNoFaultIsRefused) {
  for (const char* const text : {"write", "write:EIO", "write:EIO:0", "write:EIO:x",
                                 "write:boom:1", "write:EIO:1:0:0", "write:EIO:1:"}) {
    EXPECT_THROW(set_fault(text), std::invalid_argument) << text;
  }
  set_fault("write:EIO:1:7");  // for a rank that this process is not
  EXPECT_EQ(fault_at("write").code, 0);
  EXPECT_FALSE(fault_has_happened());
  set_fault("");
}

}  // namespace
}  // namespace torchtitan::storage
