#include "collectives/heartbeat.h"

#include <gtest/gtest.h>

#include <functional>
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
  Rank(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t size,
       std::chrono::milliseconds longest_idle = 1h)
      : heartbeat(store,
                  {.rank = rank,
                   .size = size,
                   .interval = 100ms,
                   .store_owner = "rank 0",
                   .longest_idle = longest_idle},
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

// The newest beat of a rank in the store.
Beat beat_of(c10d::Store& store, int64_t rank) {
  const auto bytes = store.get("beat/" + std::to_string(rank));
  return Beat::from_text({bytes.begin(), bytes.end()}).value();
}

// Polls: how long it takes depends on the machine.
void wait_until(const std::function<bool()>& condition) {
  const auto start = std::chrono::steady_clock::now();
  while (!condition()) {
    ASSERT_LT(std::chrono::steady_clock::now() - start, 120s) << "in vain";
    std::this_thread::sleep_for(1ms);
  }
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
}

TEST(Heartbeat, NamesARankThatStoppedBeatingAndTellsAllOthers) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 3), one(store, 1, 3), two(store, 2, 3);
  two.watch->set_step(12);
  wait_until([&] { return beat_of(*store, 2).step == 12; });
  two.heartbeat.stop();
  const std::string line = zero.fails({"barrier of group 'dp'", "broken"});
  expect_part(line, "rank 2 (");
  expect_part(line, "has not answered for ");
  expect_part(line, "last seen in step 12 (rank 0 waits for barrier of group 'dp')");
  EXPECT_EQ(line.find('\n'), std::string::npos);
  wait_until([&] { return one.watch->aborted(); });
  EXPECT_EQ(one.fails({"barrier of group 'dp'", "broken"}), line);
}

TEST(Heartbeat, NamesTheRankThatWaitsForNobodyAfterATimeout) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 3), one(store, 1, 3), two(store, 2, 3);
  const Watch::Scope waits(*one.watch, "barrier of group 'dp'");
  const std::string line = zero.fails({"barrier of group 'dp'", "late", true});
  expect_part(line, "rank 2 (");
  expect_part(line, "has stalled: in no collective for ");
  EXPECT_EQ(line.find("rank 1"), std::string::npos) << line;
}

TEST(Heartbeat, EndsPatientWaitsWhenTheNextRankBeatsNoMore) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 3), one(store, 1, 3), two(store, 2, 3);
  for (Rank* const rank : {&zero, &one}) rank->watch->set_patient(true);
  const Watch::Scope waits(*one.watch, "all_gather of group 'world'");
  two.heartbeat.stop();
  wait_until([&] { return zero.watch->aborted() && one.watch->aborted(); });
  const std::string line = zero.fails({"", ""});
  expect_part(line, "rank 2 (");
  expect_part(line, "has not answered for ");
  expect_part(line, "(rank 1 waits for all_gather of group 'world')");
  EXPECT_EQ(one.fails({"", ""}), line);
}

TEST(HeartbeatSlow, GuardsPatientWaitsAndMissesNobodyWhoHasLeft) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  Rank zero(store, 0, 2), one(store, 1, 2);
  zero.watch->set_patient(true);
  const auto start = Watch::Clock::now() - 1h;
  wait_until([&] { return !zero.watch->expired(start); });
  one.heartbeat.leave();
  wait_until([&] { return beat_of(*store, 1).left; });
  // More than a rank that is lost is waited for.
  const int64_t enough = beat_of(*store, 0).number + 45;
  wait_until([&] { return beat_of(*store, 0).number >= enough; });
  EXPECT_FALSE(zero.watch->aborted());
  // Without its thread nobody guards it.
  zero.heartbeat.stop();
  wait_until([&] { return zero.watch->expired(start); });
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
  const auto refuse = [&](const std::string& part, HeartbeatOptions options) {
    expect_value_error(part, [&] { Heartbeat(store, options, watch); });
  };
  const HeartbeatOptions fits{
      .rank = 0, .size = 2, .interval = 1s, .store_owner = "", .longest_idle = 1s};
  HeartbeatOptions options = fits;
  options.rank = 2;
  refuse("expected 0 <= rank < size, but got rank 2 of 2", options);
  options = fits;
  options.interval = 0s;
  refuse("interval must be positive, but is 0 ms", options);
  options = fits;
  options.longest_idle = 0s;
  refuse("longest_idle must be positive, but is 0 ms", options);
}

TEST(Beat, SurvivesItsTextForm) {
  const Beat beat{.number = 3,
                  .pid = 17,
                  .step = -1,
                  .unix_ms = 5,
                  .idle_ms = 6,
                  .work = 8,
                  .left = true,
                  .host = "node-1",
                  .processes = "boot/pid:[1]",
                  .waits_for = "barrier of group 'dp'"};
  const auto read = Beat::from_text(beat.to_text());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->to_text(), beat.to_text());
  EXPECT_EQ(read->waits_for, "barrier of group 'dp'");
  EXPECT_EQ(read->step, -1);
  EXPECT_TRUE(read->left);
  EXPECT_EQ(read->work, 8);
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
  expect_part(*blame(all, {"", ""}, 0, 0), "step (seen by rank 0)");
  all[3].beat->left = true;
  expect_part(*blame(all, late, 0, 0), "rank 3 (node, pid 7) has left the run");
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
