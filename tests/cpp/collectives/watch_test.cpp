#include "collectives/watch.h"

#include <gtest/gtest.h>

#include "collectives/group.h"
#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

using namespace std::chrono_literals;

std::string thrown_by(const std::function<void()>& action) {
  try {
    action();
  } catch (const CollectiveError& error) {
    return error.what();
  }
  return "nothing";
}

TEST(Watch, KeepsTheFirstCause) {
  Watch watch(1s);
  EXPECT_FALSE(watch.aborted());
  watch.abort("rank 1 has died");
  watch.abort("a consequence");
  EXPECT_TRUE(watch.aborted());
  EXPECT_EQ(thrown_by([&] { watch.throw_cause(); }), "rank 1 has died");
  EXPECT_EQ(thrown_by([&] { watch.fail({"barrier", "later"}); }), "rank 1 has died");
}

TEST(Watch, AsksForAnExplanationOfAFailure) {
  Watch plain(1s);
  EXPECT_EQ(thrown_by([&] { plain.fail({"barrier of group 'dp'", "broken"}); }),
            "barrier of group 'dp': broken");
  Watch watch(1s);
  watch.set_explain([](const Failure& failure) {
    return failure.what + (failure.timed_out ? " late" : " broken");
  });
  EXPECT_EQ(thrown_by([&] { watch.fail({"barrier", "", true}); }), "barrier late");
}

TEST(Watch, HasNoDeadlineOnlyWhilePatientAndGuarded) {
  Watch watch(1s);
  const auto now = Watch::Clock::now();
  EXPECT_FALSE(watch.expired(now + 1h));
  EXPECT_TRUE(watch.expired(now - 1h));
  watch.set_guarded_until(now + 1h);
  EXPECT_TRUE(watch.expired(now - 1h));
  watch.set_patient(true);
  EXPECT_FALSE(watch.expired(now - 1h));
  watch.set_guarded_until(now);
  EXPECT_TRUE(watch.expired(now - 1h));
}

TEST(Watch, ShowsTheWaitThatBeganFirst) {
  Watch watch(1s);
  EXPECT_FALSE(watch.waiting());
  const auto before = watch.last_wait_end();
  {
    const Watch::Scope first(watch, "first");
    const Watch::Scope second(watch, "second");
    EXPECT_EQ(watch.waiting()->what, "first");
  }
  EXPECT_FALSE(watch.waiting());
  EXPECT_GT(watch.last_wait_end(), before);
}

TEST(Watch, ClosesOnce) {
  Watch watch(1s);
  int closed = 0;
  watch.on_close([&] { ++closed; });
  watch.close();
  watch.close();
  EXPECT_EQ(closed, 1);
}

TEST(Watch, RefusesATimeoutOfZero) {
  expect_value_error("timeout must be positive, but is 0 ms", [] { Watch watch(0ms); });
  Watch watch(1s);
  expect_value_error("but is -5 ms", [&] { watch.set_timeout(-5ms); });
  EXPECT_EQ(watch.timeout(), 1s);
}

}  // namespace
}  // namespace torchtitan::collectives
