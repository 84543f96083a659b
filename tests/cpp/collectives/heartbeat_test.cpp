#include "collectives/heartbeat.h"

#include <gtest/gtest.h>

#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "collectives/beat.h"
#include "collectives/group.h"
#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

using namespace std::chrono_literals;

// All "ranks" are threads of this process with a store in memory.
struct Rank {
  Rank(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t size)
      : heartbeat(
            store,
            {.rank = rank, .size = size, .interval = 20ms, .store_owner = "rank 0"},
            watch) {}

  std::string fails(const Failure& failure) {
    try {
      watch->fail(failure);
    } catch (const CollectiveError& error) {
      return error.what();
    }
  }

  std::shared_ptr<Watch> watch = std::make_shared<Watch>(10s);
  Heartbeat heartbeat;
};

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
}

TEST(Heartbeat, NamesARankThatStoppedBeatingAndTellsAllOthers) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 3), one(store, 1, 3), two(store, 2, 3);
  two.watch->set_step(12);
  std::this_thread::sleep_for(60ms);
  two.heartbeat.stop();
  const std::string line = zero.fails({"barrier of group 'dp'", "broken"});
  expect_part(line, "rank 2 (");
  expect_part(line, "has not answered for 0.");
  expect_part(line, "last seen in step 12 (rank 0 waits for barrier of group 'dp')");
  EXPECT_EQ(line.find('\n'), std::string::npos);
  for (int turn = 0; turn < 500 && !one.watch->aborted(); ++turn) {
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(one.fails({"barrier of group 'dp'", "broken"}), line);
}

TEST(Heartbeat, NamesTheRankThatWaitsForNobodyAfterATimeout) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 3), one(store, 1, 3), two(store, 2, 3);
  const Watch::Scope waits(*one.watch, "barrier of group 'dp'");
  const std::string line = zero.fails({"barrier of group 'dp'", "late", true});
  expect_part(line, "rank 2 (");
  expect_part(line, "has stalled: in no collective for 0.");
  EXPECT_EQ(line.find("rank 1"), std::string::npos) << line;
}

TEST(Heartbeat, PublishesTheCauseOfTheRankThatReportsFirst) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 2), one(store, 1, 2);
  EXPECT_EQ(one.heartbeat.report("rank 1 found no data"), "rank 1 found no data");
  EXPECT_EQ(zero.heartbeat.report("a consequence"), "rank 1 found no data");
  EXPECT_EQ(zero.fails({"barrier", "broken"}), "rank 1 found no data");
}

TEST(Heartbeat, LeavesAnErrorAsItCameWhenAllRanksAnswer) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 2), one(store, 1, 2);
  EXPECT_EQ(zero.fails({"barrier of group 'dp'", "no such device"}),
            "barrier of group 'dp': no such device");
}

TEST(Heartbeat, RefusesWhatIsOutOfRange) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto watch = std::make_shared<Watch>(1s);
  expect_value_error("expected 0 <= rank < size, but got rank 2 of 2", [&] {
    Heartbeat(store, {.rank = 2, .size = 2, .interval = 1s, .store_owner = ""}, watch);
  });
  expect_value_error("interval must be positive, but is 0 ms", [&] {
    Heartbeat(store, {.rank = 0, .size = 2, .interval = 0s, .store_owner = ""}, watch);
  });
}

TEST(Beat, SurvivesItsTextForm) {
  const Beat beat{.number = 3,
                  .pid = 17,
                  .step = -1,
                  .unix_ms = 5,
                  .idle_ms = 6,
                  .host = "node-1",
                  .processes = "boot/pid:[1]",
                  .waits_for = "barrier of group 'dp'"};
  const auto read = Beat::from_text(beat.to_text());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->to_text(), beat.to_text());
  EXPECT_EQ(read->waits_for, "barrier of group 'dp'");
  EXPECT_EQ(read->step, -1);
  EXPECT_FALSE(Beat::from_text(""));
  EXPECT_FALSE(Beat::from_text("1 2 x"));
}

TEST(Beat, KnowsWhetherAProcessOfThisMachineHasEnded) {
  const Watch watch(1s);
  const Beat own = own_beat(watch);
  EXPECT_FALSE(has_ended(own, own));
  Beat gone = own;
  gone.pid = int64_t{1} << 40;
  EXPECT_TRUE(has_ended(gone, own));
  gone.processes = "another machine";
  EXPECT_FALSE(has_ended(gone, own));
}

TEST(Beat, BlamesTheDeadBeforeTheSilentAndTheSilentBeforeTheStalled) {
  const Failure late{"barrier", "late", true};
  const auto seen = [](int64_t rank, const char* waits_for) {
    Sighting sighting{.rank = rank, .beat = Beat{}};
    sighting.beat->pid = 7;
    sighting.beat->host = "node";
    sighting.beat->waits_for = waits_for;
    return sighting;
  };
  std::vector<Sighting> all{seen(0, "barrier"), seen(1, ""), seen(2, "all_reduce"),
                            seen(3, "barrier")};
  expect_part(*blame(all, late, 0, 0), "rank 1 (node, pid 7) has stalled");
  all[2].silent = true;
  all[2].beat->unix_ms = 1000;
  const std::string silent = *blame(all, late, 0, 7100);
  EXPECT_EQ(
      silent,
      "rank 2 (node, pid 7) has not answered for 6.1 s; last seen before the first "
      "step (rank 0 waits for barrier)");
  all[3].ended = true;
  expect_part(*blame(all, late, 0, 0), "rank 3 (node, pid 7) has died");
  const std::vector<Sighting> mixed{seen(0, "barrier"), seen(1, "all_reduce")};
  EXPECT_EQ(*blame(mixed, late, 0, 0),
            "ranks wait for different operations: rank 0 waits for barrier; rank 1 "
            "(node, pid 7) waits for all_reduce");
  EXPECT_FALSE(blame(mixed, {"barrier", "broken"}, 0, 0));
  const std::vector<Sighting> many(9, {.rank = 5, .beat = {}, .silent = true});
  expect_part(*blame(many, late, 0, 0), "rank 5 has never answered; and 5 more");
}

}  // namespace
}  // namespace torchtitan::collectives
