#include "storage/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>

#include "storage/temporary_folder.h"

namespace torchtitan::storage {
namespace {

TEST(PlainName, RefusesEveryWayOutOfTheFolder) {
  for (const std::string name : {"", ".", "..", "../a", "a/b", "/a", "a/../b", "~",
                                 "~/a", ".hidden", "a\n", "a/"}) {
    EXPECT_THROW(check_plain_name(name, "x"), std::invalid_argument) << name;
  }
  EXPECT_THROW(check_plain_name(std::string("a\0b", 3), "x"), std::invalid_argument);
  EXPECT_THROW(check_plain_name(std::string(256, 'a'), "x"), std::invalid_argument);
  EXPECT_NO_THROW(check_plain_name("model-00001-of-00002.safetensors", "x"));
  EXPECT_NO_THROW(check_plain_name(kDcpMetadataName, "x"));
  EXPECT_THROW(check_plain_name(".metadata2", "x"), std::invalid_argument);
}

TEST(File, AFullDiskIsAnErrorWithPathAndReason) {
  try {
    File full = File::open_for_reading("/dev/full");
    FAIL() << "not a regular file";
  } catch (const std::invalid_argument&) {
  }
  const TemporaryFolder folder;
  const rlimit limit{1000, 1000};
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_text(folder / "large", std::string(5000, 'x'));
    } catch (const FileError& error) {
      const std::string text = error.what();
      _exit(error.code() == EFBIG && text.find("large: cannot write") != text.npos ? 7
                                                                                   : 1);
    }
    _exit(2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

// As a write that ended between two sectors goes on.
TEST(File, WritesPastTheCacheGoOnThroughItWhereTheyDoNotFit) {
  for (const std::filesystem::path parent : {"/dev/shm", "/var/tmp"}) {
    const TemporaryFolder folder(parent);
    const std::string text(2 * kDirectBytes, 'x');
    {
      File file = File::create(folder / "data");
      file.bypass_cache();
      file.write_at(0, std::as_bytes(std::span(text)).first(5));
      file.write_at(5, std::as_bytes(std::span(text)).subspan(5));
      file.sync();
    }
    EXPECT_EQ(read_text(folder / "data", 1 << 20), text);
  }
}

}  // namespace
}  // namespace torchtitan::storage
