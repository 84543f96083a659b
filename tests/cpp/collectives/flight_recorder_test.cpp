#include "collectives/flight_recorder.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "base/json.h"
#include "collectives/fake_group.h"
#include "collectives/local_world.h"
#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

using namespace std::chrono_literals;
using base::Json;

std::shared_ptr<FlightRecorder> recorder_of(int64_t rank, int64_t size,
                                            int64_t capacity = 100,
                                            const std::string& path = "unused") {
  return std::make_shared<FlightRecorder>(FlightOptions{
      .rank = rank, .size = size, .capacity = capacity, .run = "r", .path = path});
}

Json record_of(const FlightRecorder& recorder) {
  return base::parse_json(recorder.to_json("why"), {.name = "record", .max_depth = 8});
}

TEST(FlightRecorder, NotesWhatAGroupDoes) {
  const auto recorder = recorder_of(5, 8);
  const Group group = traced(fake_group("tp", 1, 2), recorder, {4, 5});
  recorder->set_step(3);
  group.all_reduce(at::zeros({3}), ReduceOp::kMax).wait();
  recorder->set_step(4);
  const Handle sent = group.send(at::zeros({2}, at::kDouble), 0, 7);
  group.broadcast(at::zeros({1}), 0).wait();
  const Json record = record_of(*recorder);
  EXPECT_EQ(record.at("rank").as_integer(), 5);
  EXPECT_EQ(record.at("step").as_integer(), 4);
  EXPECT_EQ(record.at("cause").as_string(), "why");
  const auto& entries = record.at("entries").as_array();
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries[0].at("op").as_string(), "all_reduce");
  EXPECT_EQ(entries[0].at("reduce").as_string(), "max");
  EXPECT_EQ(entries[0].at("bytes").as_integer(), 12);
  EXPECT_EQ(entries[0].at("step").as_integer(), 3);
  EXPECT_EQ(entries[0].at("state").as_string(), "completed");
  EXPECT_TRUE(entries[0].at("peer").is_null());
  EXPECT_EQ(entries[1].at("peer").as_integer(), 4);
  EXPECT_EQ(entries[1].at("tag").as_integer(), 7);
  EXPECT_EQ(entries[1].at("dtype").as_string(), "Double");
  EXPECT_EQ(entries[2].at("sequence").as_integer(), 1);
  const Json& group_record = record.at("groups").as_array().at(0);
  EXPECT_EQ(group_record.at("name").as_string(), "tp");
  EXPECT_EQ(group_record.at("started").as_integer(), 2);
  EXPECT_EQ(group_record.at("ranks").as_array().at(1).as_integer(), 5);
}

TEST(FlightRecorder, KeepsTheLastOnes) {
  const auto recorder = recorder_of(0, 2, 3);
  const Group group = traced(fake_group("dp", 0, 2), recorder, {0, 1});
  std::vector<Handle> handles;
  for (int64_t i = 0; i < 8; ++i) handles.push_back(group.all_reduce(at::zeros({i})));
  for (const Handle& handle : handles) handle.wait();  // of replaced entries, too
  const Json record = record_of(*recorder);
  const auto& entries = record.at("entries").as_array();
  ASSERT_EQ(entries.size(), 3U);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(entries[i].at("sequence").as_integer(), 5 + i);
    EXPECT_EQ(entries[i].at("numel").as_integer(), 5 + i);
    EXPECT_EQ(entries[i].at("state").as_string(), "completed");
  }
  EXPECT_EQ(record.at("started").as_integer(), 8);
}

TEST(FlightRecorder, TellsWhatIsWaitedFor) {
  const LocalWorld world(2, 50ms);
  const auto recorder = recorder_of(0, 2);
  const Group group = traced(world.group(0, "dp"), recorder, {0, 1});
  const Handle handle = group.barrier();
  const auto state = [&] {
    return record_of(*recorder).at("entries").as_array().at(0).at("state").as_string();
  };
  EXPECT_EQ(state(), "started");
  EXPECT_THROW(handle.wait(), CollectiveError);
  EXPECT_EQ(state(), "failed");
}

TEST(FlightRecorder, IsWrittenBeforeAnAbortIsSeen) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "flight" / "below";
  std::filesystem::remove_all(folder.parent_path());
  const auto recorder = recorder_of(1, 2, 3, (folder / "rank_1.json").string());
  Watch watch(1s);
  write_on_abort(watch, recorder);
  EXPECT_FALSE(std::filesystem::exists(folder));
  watch.abort("first");
  watch.abort("second");
  std::stringstream text;
  text << std::ifstream(folder / "rank_1.json").rdbuf();
  const std::string written = text.str();
  const Json record = base::parse_json(written, {.name = "record", .max_depth = 8});
  EXPECT_EQ(record.at("cause").as_string(), "first");
  std::filesystem::remove_all(folder.parent_path());
}

TEST(FlightRecorder, RefusesWhatDoesNotFit) {
  expect_value_error("0 <= rank < size", [] { recorder_of(2, 2); });
  expect_value_error("capacity must be positive", [] { recorder_of(0, 2, 0); });
  expect_value_error("expected 2 ranks",
                     [] { traced(fake_group("dp", 0, 2), recorder_of(0, 2), {0}); });
  expect_value_error("recorder is null", [] { traced(Group(), nullptr, {0}); });
}

TEST(FlightRecorder, SaysWhyItCannotWriteAndLeavesNothing) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("flight" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder / "rank_0.json");
  const auto reason = [](const std::string& path) -> std::string {
    try {
      recorder_of(0, 2, 1, path)->write("why");
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(reason("/dev/null/rank_0.json"),
            "the flight record /dev/null/rank_0.json could not be written: Not a "
            "directory");
  EXPECT_NE(reason(folder / "rank_0.json").find("Is a directory"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder / "rank_0.json.tmp"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace torchtitan::collectives
