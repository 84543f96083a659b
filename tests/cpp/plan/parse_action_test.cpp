#include "plan/parse_action.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace torchtitan::plan {
namespace {

using K = ActionKind;

TEST(ParseAction, ReadsWhatToStringWrites) {
  for (int i = 0; i <= static_cast<int>(K::kOptimizerStep); ++i) {
    const Action plain{.kind = static_cast<K>(i)};
    if (plain.kind == K::kWait) continue;  // it waits for something
    EXPECT_EQ(parse_action(to_string(plain)), plain);
    const Action full{.kind = static_cast<K>(i),
                      .stage = 12,
                      .segment = 0,
                      .group = 7,
                      .microbatch = 345};
    EXPECT_EQ(parse_action(to_string(full)), full);
    EXPECT_EQ(parse_action(to_string(wait_for(full))), wait_for(full));
  }
  const Action pair{.kind = K::kForward, .segment = 3, .overlaps_next = true};
  EXPECT_EQ(parse_action(to_string(pair)), pair);
}

TEST(ParseAction, RefusesAnyOtherText) {
  for (const char* text :
       {"", "forward", "Forwards", "Forward s", "Forward s-1", "Forward s1x",
        "Forward s1 s2", "Forward mb1 s1", "Forward q1", "Forward s1 with",
        "Forward s1 with the next one", " Forward", "Wait", "Wait Never",
        "Forward s99999999999999999999"}) {
    EXPECT_THROW(parse_action(text), std::invalid_argument) << text;
  }
}

}  // namespace
}  // namespace torchtitan::plan
