#include "parallel/activation_checkpoint/select.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace torchtitan::parallel::activation_checkpoint {
namespace {

const std::vector<std::string> kNames = {"tok_embeddings", "layers.0", "layers.1",
                                         "layers.2",       "layers.3", "head"};

TEST(SelectRecompute, NoneKeepsEverything) {
  EXPECT_EQ(select(kNames, {Policy::Mode::kNone, 1}), std::vector<bool>(6, false));
}

TEST(SelectRecompute, FullTakesEveryBlockAndNothingElse) {
  EXPECT_EQ(select(kNames, {Policy::Mode::kFull, 1}),
            (std::vector<bool>{false, true, true, true, true, false}));
}

TEST(SelectRecompute, SelectiveTakesEveryNthBlock) {
  EXPECT_EQ(select(kNames, {Policy::Mode::kSelective, 2}),
            (std::vector<bool>{false, false, true, false, true, false}));
  EXPECT_EQ(select(kNames, {Policy::Mode::kSelective, 3}),
            (std::vector<bool>{false, false, false, true, false, false}));
}

TEST(SelectRecompute, RefusesAnIntervalBelowOne) {
  EXPECT_THROW(select(kNames, {Policy::Mode::kSelective, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace torchtitan::parallel::activation_checkpoint
