#include "collectives/local_world.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "collectives/test_support.h"

namespace torchtitan::collectives {
namespace {

using at::Tensor;
using namespace std::chrono_literals;

// Different on every rank, with sums that depend on their order in 32 bits.
Tensor values(int64_t rank, int64_t numel, at::ScalarType dtype = at::kDouble) {
  const double shift = 1.0 / (3.0 + static_cast<double>(rank));
  return at::arange(numel, at::kDouble).mul(0.37).add(shift).sin().to(dtype);
}

// In rank order; 16-bit types in float32, rounded once.
Tensor sum_of_all(int64_t size, int64_t numel, at::ScalarType dtype) {
  const bool narrow = dtype == at::kBFloat16;
  Tensor total = values(0, numel, dtype).to(narrow ? at::kFloat : dtype);
  for (int64_t rank = 1; rank < size; ++rank) total.add_(values(rank, numel, dtype));
  return total.to(dtype);
}

class LocalWorldOf : public testing::TestWithParam<int64_t> {};

TEST_P(LocalWorldOf, ReducesToTheSameBitsOnAllRanks) {
  const int64_t size = GetParam();
  const LocalWorld world(size, 30s);
  world.run([&](int64_t rank) {
    const Group group = world.group(rank);
    EXPECT_EQ(group.rank(), rank);
    EXPECT_EQ(group.size(), size);
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const Tensor tensor = values(rank, 10, dtype).view({5, 2});
      group.all_reduce(tensor).wait();
      EXPECT_TRUE(at::equal(tensor.view(-1), sum_of_all(size, 10, dtype))) << dtype;
      const Tensor scattered = at::zeros({3}, dtype);
      group.reduce_scatter(scattered, values(rank, 3 * size, dtype)).wait();
      const Tensor expected = sum_of_all(size, 3 * size, dtype).narrow(0, 3 * rank, 3);
      EXPECT_TRUE(at::equal(scattered, expected)) << dtype;
    }
    const Tensor largest = at::full({2}, static_cast<double>(rank));
    const Tensor smallest = largest.clone();
    group.all_reduce(largest, ReduceOp::kMax).wait();
    group.all_reduce(smallest, ReduceOp::kMin).wait();
    EXPECT_EQ(largest[1].item<double>(), static_cast<double>(size - 1));
    EXPECT_EQ(smallest[1].item<double>(), 0.0);
  });
}

TEST_P(LocalWorldOf, GathersInRankOrderAlsoInPlaceAndWhenEmpty) {
  const int64_t size = GetParam();
  const LocalWorld world(size, 30s);
  std::vector<Tensor> all;
  for (int64_t rank = 0; rank < size; ++rank) all.push_back(values(rank, 4));
  const Tensor expected = at::cat(all);
  world.run([&](int64_t rank) {
    const Group group = world.group(rank);
    const Tensor out = at::zeros({4 * size}, at::kDouble);
    group.all_gather(out, values(rank, 4).view({2, 2})).wait();
    EXPECT_TRUE(at::equal(out, expected));
    const Tensor in_place = at::zeros({4 * size}, at::kDouble);
    const Tensor own = in_place.narrow(0, 4 * rank, 4);
    own.copy_(values(rank, 4));
    group.all_gather(in_place, own).wait();
    EXPECT_TRUE(at::equal(in_place, expected));
    group.all_gather(at::zeros({0}), at::zeros({0})).wait();
    group.reduce_scatter(at::zeros({0}), at::zeros({0})).wait();
  });
}

TEST_P(LocalWorldOf, ExchangesUnevenRows) {
  const int64_t size = GetParam();
  const LocalWorld world(size, 30s);
  // Rank s sends (s + d) % 3 rows, valued 100 s + d, to rank d.
  const auto rows = [](int64_t from, int64_t to) { return (from + to) % 3; };
  world.run([&](int64_t rank) {
    std::vector<int64_t> in_splits, out_splits;
    std::vector<Tensor> in{at::zeros({0, 2})}, expected{at::zeros({0, 2})};
    for (int64_t peer = 0; peer < size; ++peer) {
      in_splits.push_back(rows(rank, peer));
      in.push_back(at::full({in_splits.back(), 2}, 100.0 * rank + peer));
      out_splits.push_back(rows(peer, rank));
      expected.push_back(at::full({out_splits.back(), 2}, 100.0 * peer + rank));
    }
    const Tensor out = at::zeros(at::cat(expected).sizes());
    world.group(rank).all_to_all(out, at::cat(in), out_splits, in_splits).wait();
    EXPECT_TRUE(at::equal(out, at::cat(expected)));
  });
}

TEST_P(LocalWorldOf, BroadcastsFromEveryRootAndSendsAroundARing) {
  const int64_t size = GetParam();
  const LocalWorld world(size, 30s);
  world.run([&](int64_t rank) {
    const Group group = world.group(rank);
    for (int64_t root = 0; root < size; ++root) {
      const Tensor tensor = values(rank, 5);
      group.broadcast(tensor, root).wait();
      EXPECT_TRUE(at::equal(tensor, values(root, 5)));
    }
    const int64_t next = (rank + 1) % size;
    const int64_t previous = (rank + size - 1) % size;
    const Tensor one = at::zeros({3}, at::kDouble);
    const Tensor two = at::zeros({3}, at::kDouble);
    // Tags meet their like, whatever the order of the receives.
    const Handle receives_two = group.recv(two, previous, 2);
    const Handle receives_one = group.recv(one, previous, 1);
    const Handle sends_one = group.send(values(rank, 3), next, 1);
    const Handle sends_two = group.send(values(rank + 100, 3), next, 2);
    for (const Handle& handle : {receives_one, receives_two, sends_one, sends_two}) {
      handle.wait();
      EXPECT_TRUE(handle.completed());
    }
    EXPECT_TRUE(at::equal(one, values(previous, 3)));
    EXPECT_TRUE(at::equal(two, values(previous + 100, 3)));
  });
}

TEST_P(LocalWorldOf, WaitsInAnyOrderUnderUnevenTiming) {
  const int64_t size = GetParam();
  const LocalWorld world(size, 30s);
  world.run([&](int64_t rank) {
    const Group group = world.group(rank);
    for (int64_t round = 0; round < 20; ++round) {
      if ((round + rank) % 3 == 0) std::this_thread::sleep_for(1ms);
      const Tensor first = at::full({2}, static_cast<double>(rank));
      const Tensor second = at::full({2}, static_cast<double>(rank + round));
      const Handle one = group.all_reduce(first);
      const Handle two = group.all_reduce(second);
      group.barrier();  // a dropped handle
      if (rank % 2 == 0) one.wait();
      two.wait();
      one.wait();
      const double sum = static_cast<double>(size * (size - 1)) / 2;
      EXPECT_EQ(first[0].item<double>(), sum);
      EXPECT_EQ(second[1].item<double>(), sum + static_cast<double>(size * round));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, LocalWorldOf, testing::Values(2, 3, 4, 8));

TEST(LocalWorld, GivesEveryMeshAxisItsOwnSubgroup) {
  const LocalWorld world(4, 30s);
  world.run([&](int64_t rank) {
    const int64_t row = rank / 2;
    const int64_t column = rank % 2;
    const GroupMap groups = make_groups(
        {{"dp", {column, column + 2}}, {"tp", {2 * row, 2 * row + 1}}, {"pp", {rank}}},
        rank, [&](const AxisRanks& axis) {
          return world.group(rank, axis.axis, axis.ranks);
        });
    const Tensor over_dp = at::full({1}, static_cast<double>(rank));
    const Tensor over_tp = over_dp.clone();
    const Tensor over_pp = over_dp.clone();
    groups.at("dp").all_reduce(over_dp).wait();
    groups.at("tp").all_reduce(over_tp).wait();
    groups.at("pp").all_reduce(over_pp).wait();
    EXPECT_EQ(over_dp.item<double>(), 2.0 * column + 2.0);
    EXPECT_EQ(over_tp.item<double>(), 4.0 * row + 1.0);
    EXPECT_EQ(over_pp.item<double>(), static_cast<double>(rank));
    EXPECT_EQ(groups.at("dp").rank(), row);
  });
}

TEST(LocalWorld, OrdersASubgroupAsItsRanksAreListed) {
  const LocalWorld world(3, 30s);
  world.run([&](int64_t rank) {
    if (rank == 1) return;
    const Group group = world.group(rank, "odd", {2, 0});
    const Tensor out = at::zeros({2});
    group.all_gather(out, at::full({1}, static_cast<float>(rank))).wait();
    EXPECT_EQ(out[0].item<float>(), 2.0F);
    EXPECT_EQ(out[1].item<float>(), 0.0F);
  });
}

TEST(LocalWorld, ThrowsTheFirstCauseOnAllRanks) {
  const LocalWorld world(4, 30s);
  std::atomic<int> told = 0;
  const auto body = [&](int64_t rank) {
    if (rank == 2) {
      std::this_thread::sleep_for(20ms);
      throw std::runtime_error("rank 2 found no data");
    }
    const Group group = world.group(rank);
    try {
      group.all_reduce(at::zeros({2})).wait();
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "rank 2 found no data");
      EXPECT_THROW(group.barrier(), std::runtime_error);
      ++told;
      throw std::runtime_error("a consequence");
    }
  };
  try {
    world.run(body);
    FAIL() << "rank 2 threw";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 2 found no data");
  }
  EXPECT_EQ(told, 3);
}

TEST(LocalWorld, NamesTheRankThatDidNotCome) {
  const LocalWorld world(3, 50ms);
  try {
    world.run([&](int64_t rank) {
      if (rank != 1) world.group(rank, "fsdp").all_reduce(at::zeros({7})).wait();
    });
    FAIL() << "rank 1 did not come";
  } catch (const CollectiveError& error) {
    EXPECT_STREQ(
        error.what(),
        "rank 1 did not start all_reduce of Float[7] of group 'fsdp' (ranks 0, "
        "1, 2) within 0.05 s");
  }
}

TEST(LocalWorld, APatientRankWaitsForOneThatIsLate) {
  const LocalWorld world(2, 30s);
  world.set_timeout(20ms);
  world.set_patient(0, true);
  world.run([&](int64_t rank) {
    if (rank == 1) std::this_thread::sleep_for(200ms);
    world.group(rank).all_reduce(at::zeros({2})).wait();
  });
  world.set_patient(0, false);
  EXPECT_THROW(world.run([&](int64_t rank) {
    if (rank == 0) world.group(rank).all_reduce(at::zeros({2})).wait();
  }),
               CollectiveError);
}

TEST(LocalWorld, RefusesRanksThatStartDifferentOperations) {
  const auto run = [](const std::function<void(const Group&)>& body) {
    const LocalWorld world(2, 30s);
    world.run([&](int64_t rank) { body(world.group(rank)); });
  };
  expect_value_error("all_reduce of Float[3]", [&] {
    run([](const Group& group) {
      group.all_reduce(at::zeros({2 + group.rank()})).wait();
    });
  });
  expect_value_error("started barrier", [&] {
    run([](const Group& group) {
      (group.rank() ? group.barrier() : group.all_reduce(at::zeros({2}))).wait();
    });
  });
  expect_value_error("Double", [&] {
    run([](const Group& group) {
      const auto dtype = group.rank() ? at::kDouble : at::kFloat;
      group.broadcast(at::zeros({2}, dtype), 0).wait();
    });
  });
  expect_value_error("recv of Float[3]", [&] {
    run([](const Group& group) {
      if (group.rank())
        group.recv(at::zeros({3}), 0).wait();
      else
        group.send(at::zeros({2}), 1).wait();
    });
  });
  expect_value_error("sends 2 rows to rank 1, which expects 1", [&] {
    run([](const Group& group) {
      if (group.rank())
        group.all_to_all(at::zeros({2}), at::zeros({2}), {1, 1}, {1, 1}).wait();
      else
        group.all_to_all(at::zeros({2}), at::zeros({3}), {1, 1}, {1, 2}).wait();
    });
  });
}

TEST(LocalWorld, RefusesATimeoutThatIsNotPositiveAndAPatientRankThatIsNotThere) {
  const LocalWorld world(2, 1s);
  expect_value_error("timeout must be positive", [&] { world.set_timeout(0ms); });
  expect_value_error("rank 2 is not in a world of 2",
                     [&] { world.set_patient(2, true); });
}

TEST(LocalWorld, RefusesImpossibleGroups) {
  expect_value_error("size must be positive", [] { LocalWorld(0, 1s); });
  expect_value_error("timeout must be positive", [] { LocalWorld(1, 0s); });
  const LocalWorld world(3, 1s);
  expect_value_error("rank 3 of group 'tp' is not in a world of 3",
                     [&] { world.group(0, "tp", {0, 3}); });
  expect_value_error("lists rank 1 twice", [&] { world.group(1, "tp", {1, 1}); });
  expect_value_error("rank 2 asks for group 'tp' of ranks [0, 1]",
                     [&] { world.group(2, "tp", {0, 1}); });
  EXPECT_EQ(world.group(2, "tp", {2}).size(), 1);
}

}  // namespace
}  // namespace torchtitan::collectives
