#include "parallel/pipeline/stages.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>
#include <string>

namespace torchtitan::parallel::pipeline {
namespace {

// Values that segments before `boundary` make and segments behind it read.
std::vector<std::string> crossing(const nn::Model& model, int64_t boundary) {
  std::set<std::string> made, read;
  for (int64_t s = 0; s < static_cast<int64_t>(model.segments.size()); ++s) {
    const auto& segment = *model.segments[static_cast<size_t>(s)];
    if (s < boundary) {
      made.insert(segment.outputs().begin(), segment.outputs().end());
    } else {
      read.insert(segment.inputs().begin(), segment.inputs().end());
    }
  }
  std::vector<std::string> both;
  std::set_intersection(made.begin(), made.end(), read.begin(), read.end(),
                        std::back_inserter(both));
  return both;
}

plan::StageShape stage_shape(const std::vector<int64_t>& rank_of_stage, size_t stage,
                             int64_t first_segment, int64_t num_segments) {
  const int64_t rank = rank_of_stage[stage];
  const bool is_last = stage + 1 == rank_of_stage.size();
  return {.index = static_cast<int64_t>(stage),
          .first_segment = first_segment,
          .num_segments = num_segments,
          .is_last = is_last,
          .receives = stage > 0 && rank_of_stage[stage - 1] != rank,
          .sends = !is_last && rank_of_stage[stage + 1] != rank};
}

std::set<int64_t> groups_of(const nn::Model& model, int64_t first, int64_t end) {
  std::set<int64_t> groups;
  for (int64_t s = first; s < end; ++s) {
    for (const auto& reference : model.segments[static_cast<size_t>(s)]->parameters()) {
      groups.insert(reference.group);
    }
  }
  return groups;
}

}  // namespace

Part take_part(nn::Model whole, const std::vector<int64_t>& segments_per_stage,
               const std::vector<int64_t>& rank_of_stage, int64_t rank) {
  const auto total =
      std::accumulate(segments_per_stage.begin(), segments_per_stage.end(), int64_t{0});
  TORCH_CHECK_VALUE(total == static_cast<int64_t>(whole.segments.size()),
                    "the stages have ", total, " segments, the model ",
                    whole.segments.size());
  TORCH_CHECK_VALUE(segments_per_stage.size() == rank_of_stage.size(), "expected ",
                    rank_of_stage.size(), " stages, found ", segments_per_stage.size());
  Part part;
  std::set<int64_t> mine;  // groups
  std::vector<std::vector<int64_t>> holders(whole.groups.size());
  int64_t first = 0;
  for (size_t stage = 0; stage < rank_of_stage.size(); ++stage) {
    const int64_t end = first + segments_per_stage[stage];
    TORCH_CHECK_VALUE(end > first, "stage ", stage, " has no segment");
    for (const int64_t group : groups_of(whole, first, end)) {
      auto& ranks = holders[static_cast<size_t>(group)];
      if (std::find(ranks.begin(), ranks.end(), rank_of_stage[stage]) == ranks.end()) {
        ranks.push_back(rank_of_stage[stage]);
      }
      if (rank_of_stage[stage] == rank) mine.insert(group);
    }
    if (rank_of_stage[stage] == rank) {
      part.stages.shapes.push_back(
          stage_shape(rank_of_stage, stage, static_cast<int64_t>(part.segments.size()),
                      end - first));
      part.stages.inputs.push_back(crossing(whole, first));
      part.stages.outputs.push_back(crossing(whole, end));
      for (int64_t s = first; s < end; ++s) part.segments.push_back(s);
    }
    first = end;
  }
  TORCH_CHECK_VALUE(!part.stages.shapes.empty(), "rank ", rank, " has no stage");

  std::vector<int64_t> new_index(whole.groups.size(), -1);
  for (const int64_t group : mine) {
    new_index[static_cast<size_t>(group)] =
        static_cast<int64_t>(part.model.groups.size());
    part.model.groups.push_back(std::move(whole.groups[static_cast<size_t>(group)]));
    part.ranks_of_group.push_back(holders[static_cast<size_t>(group)]);
    if (part.ranks_of_group.back().front() == rank) continue;
    for (auto& parameter : part.model.groups.back().parameters) {
      parameter.is_first_copy = false;
    }
  }
  for (const int64_t s : part.segments) {
    part.model.segments.push_back(std::move(whole.segments[static_cast<size_t>(s)]));
    part.model.segments.back()->renumber_groups(new_index);
  }
  part.model.constants = std::move(whole.constants);
  part.model.own_forward = std::move(whole.own_forward);
  return part;
}

Part as_part(nn::Model own, const std::vector<int64_t>& segments_per_stage,
             const std::vector<int64_t>& rank_of_stage, int64_t rank) {
  Part part{.model = std::move(own)};
  int64_t first = 0;
  size_t next = 0;
  for (size_t stage = 0; stage < rank_of_stage.size(); ++stage) {
    if (rank_of_stage[stage] != rank) continue;
    const int64_t count = segments_per_stage.at(next++);
    part.stages.shapes.push_back(stage_shape(rank_of_stage, stage, first, count));
    const auto& shape = part.stages.shapes.back();
    const std::vector<std::string> hidden{nn::kHidden};
    part.stages.inputs.push_back(stage > 0 ? hidden : std::vector<std::string>{});
    part.stages.outputs.push_back(shape.is_last ? std::vector<std::string>{} : hidden);
    first += count;
  }
  TORCH_CHECK_VALUE(next == segments_per_stage.size() &&
                        first == static_cast<int64_t>(part.model.segments.size()),
                    "the stages have ", first, " segments, the model ",
                    part.model.segments.size());
  part.ranks_of_group.assign(part.model.groups.size(), {rank});
  part.segments.resize(static_cast<size_t>(first));
  std::iota(part.segments.begin(), part.segments.end(), int64_t{0});
  return part;
}

}  // namespace torchtitan::parallel::pipeline
