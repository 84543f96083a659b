#include "mesh/parallel_dims.h"

#include <gtest/gtest.h>

#include <string>

namespace torchtitan::mesh {
namespace {

ParallelDims one_rank() {
  return {.dp_replicate = 1,
          .dp_shard = 1,
          .cp = 1,
          .tp = 1,
          .pp = 1,
          .ep = 1,
          .etp = 1,
          .world_size = 1};
}

std::string refusal(const ParallelDims& dims) {
  try {
    resolve(dims);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(ParallelDims, InfersTheShardDegreeFromWhatIsLeft) {
  ParallelDims dims = one_rank();
  dims.dp_shard = -1;
  EXPECT_EQ(resolve(dims), one_rank());
  dims.dp_replicate = 2;
  dims.cp = 2;
  dims.tp = 4;
  dims.pp = 3;
  dims.world_size = 96;
  EXPECT_EQ(resolve(dims).dp_shard, 2);
}

TEST(ParallelDims, KeepsDegreesThatFit) {
  ParallelDims dims = one_rank();
  dims.dp_shard = 4;
  dims.tp = 2;
  dims.world_size = 8;
  EXPECT_EQ(resolve(dims), dims);
  dims.etp = 7;  // without effect while ep is 1
  EXPECT_EQ(resolve(dims), dims);
}

TEST(ParallelDims, RefusesAProductThatIsNotTheWorld) {
  ParallelDims dims = one_rank();
  dims.dp_shard = 3;
  dims.tp = 2;
  dims.world_size = 8;
  EXPECT_EQ(
      refusal(dims),
      "the parallel degrees do not fit together:\n"
      "  the degrees need 6 ranks (pipeline 1 x replicate 1 x shard 3 x context 1 "
      "x tensor 2), but there are 8");
  dims.dp_shard = -1;
  dims.tp = 3;
  EXPECT_NE(refusal(dims).find("parallelism.data_parallel_shard_degree = -1 cannot be "
                               "inferred: 8 ranks are not divisible by 3"),
            std::string::npos)
      << refusal(dims);
}

TEST(ParallelDims, RefusesAProductThatWouldOverflow) {
  ParallelDims dims = one_rank();
  dims.dp_replicate = int64_t{1} << 33;
  dims.tp = int64_t{1} << 33;
  dims.world_size = 4;
  EXPECT_NE(refusal(dims).find("but there are 4"), std::string::npos);
}

TEST(ParallelDims, ListsEveryDegreeBelowOneWithItsField) {
  const std::string text = refusal({.dp_replicate = 0,
                                    .dp_shard = -2,
                                    .cp = -1,
                                    .tp = 0,
                                    .pp = 0,
                                    .ep = 0,
                                    .etp = 0,
                                    .world_size = 0});
  for (const char* rule : {
           "parallelism.data_parallel_replicate_degree must be at least 1, got 0",
           "parallelism.data_parallel_shard_degree must be at least 1 or -1 (all ranks "
           "left), got -2",
           "parallelism.context_parallel_degree must be at least 1, got -1",
           "parallelism.tensor_parallel_degree must be at least 1, got 0",
           "parallelism.pipeline_parallel_degree must be at least 1, got 0",
           "parallelism.expert_parallel_degree must be at least 1, got 0",
           "parallelism.expert_tensor_parallel_degree must be at least 1, got 0",
           "WORLD_SIZE) must be at least 1, got 0",
       }) {
    EXPECT_NE(text.find(rule), std::string::npos) << "missing: " << rule << "\n"
                                                  << text;
  }
}

TEST(ParallelDims, ExpertsMustFitTheDenseRanks) {
  ParallelDims dims = one_rank();
  dims.dp_shard = 4;
  dims.tp = 4;
  dims.world_size = 16;
  dims.ep = 8;
  EXPECT_EQ(resolve(dims), dims);
  dims.etp = 2;
  dims.ep = 3;
  const std::string text = refusal(dims);
  EXPECT_NE(text.find("expert_tensor_parallel_degree must be 1 or "
                      "parallelism.tensor_parallel_degree = 4, got 2"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("expert parallel 3 x expert tensor 2 = 6 must divide shard 4 x "
                      "context 1 x tensor 4 = 16"),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace torchtitan::mesh
