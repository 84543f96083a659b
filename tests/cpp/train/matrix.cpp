#include "train/matrix.h"

#include <algorithm>
#include <ostream>

#include "plan/schedules/registry.h"
#include "train/covering_array.h"

namespace torchtitan::train::testing {
namespace {

using parallel::context::Balance;
using parallel::context::Method;
using Mode = parallel::activation_checkpoint::Policy::Mode;

constexpr size_t kLeastCells = 160;
constexpr size_t kQuickCells = 20;
constexpr int64_t kMostRanks = 8;
constexpr int64_t kMostStages = 8;

// Those that the others depend on come first.
enum Factor : size_t {
  kModel,
  kPipeline,
  kReplicas,
  kShards,
  kContext,
  kTensor,
  kSchedule,
  kStages,        // per rank
  kMicrobatches,  // of a round of the schedule
  kMethod,
  kBalance,
  kLossParallel,
  kOverlap,
  kReshard,
  kAccumulation,  // rounds of the schedule; microbatches without a pipeline
  kCheckpoint,
  kOffload,
  kTied,
  kVocabulary,
  kMasked,
  kDocuments,
  kNumFactors
};

constexpr int kNone = 0;  // of a factor that says nothing without its parallelism
constexpr int kRingOverlap = 2;
constexpr int kBudget = 4;
constexpr int kFiveClasses = 2;

// In the table of cells.
constexpr const char* kColumns[] = {
    "model",      "pipeline", "replicas",     "shards",     "context", "tensor",
    "schedule",   "stages",   "microbatches", "method",     "balance", "loss_parallel",
    "overlap",    "reshard",  "accumulation", "checkpoint", "offload", "tied",
    "vocabulary", "masked",   "documents"};
static_assert(std::size(kColumns) == kNumFactors);

// "" where a value needs no word.
using Words = std::vector<std::string>;

const std::vector<Words>& values() {
  static const auto* const all = new std::vector<Words>([] {
    Words schedules = {""};
    for (const auto& facts : plan::schedules::all_schedules()) {
      schedules.emplace_back(facts.name);
    }
    return std::vector<Words>{
        {"", "Python model"},
        {"1", "2", "4"},
        {"1", "2"},
        {"1", "2", "3"},
        {"1", "2"},
        {"1", "2", "4"},
        schedules,
        {"1", "2", "3"},
        {"", "1", "3", "4"},
        {"", "allgather", "ring", "ulysses"},
        {"", "headtail", "in order", "ptrr"},
        {"", "loss parallel", "whole logits"},
        {"", "without overlap", "ring overlap"},
        {"", "always", "default", "never"},
        {"1", "2", "3"},
        {"", "full", "every 2nd layer", "per operation", "budget 0.5"},
        {"", "offload"},
        {"", "tied"},
        {"64", "61", "5"},
        {"", "masked labels"},
        {"", "documents"}};
  }());
  return *all;
}

int64_t number(const Cell& cell, Factor factor) {
  return cell[factor] == kOpen
             ? 1
             : std::stoll(values()[factor][static_cast<size_t>(cell[factor])]);
}

// A factor that has a value other than kNone exactly where a degree is above 1.
bool fits(const Cell& cell, Factor degree, Factor factor) {
  if (cell[degree] == kOpen || cell[factor] == kOpen) return true;
  return (number(cell, degree) > 1) == (cell[factor] != kNone);
}

bool stages_fit(const Cell& cell) {
  if (number(cell, kPipeline) * number(cell, kStages) > kMostStages) return false;
  if (cell[kStages] == kOpen) return true;
  if (cell[kPipeline] != kOpen && number(cell, kPipeline) == 1) {
    return number(cell, kStages) == 1;
  }
  if (cell[kSchedule] == kOpen) return true;
  if (cell[kSchedule] == kNone) return number(cell, kStages) == 1;
  const auto& facts =
      plan::schedules::all_schedules()[static_cast<size_t>(cell[kSchedule]) - 1];
  if (facts.stages_per_rank != 0) return facts.stages_per_rank == number(cell, kStages);
  return facts.multi_stage == (number(cell, kStages) > 1);
}

// Parameters are sharded over shards x context.
bool reshard_fits(const Cell& cell) {
  if (cell[kReshard] == kOpen) return true;
  const bool whole = cell[kReshard] == kNone;
  const bool any = number(cell, kShards) * number(cell, kContext) > 1;
  const bool open = cell[kShards] == kOpen || cell[kContext] == kOpen;
  return whole ? !any : any || open;
}

bool is_python(const Cell& cell) { return cell[kModel] == 1; }

// All that models written in Python can do.
bool python_fits(const Cell& cell) {
  const auto is = [&](Factor factor, int value) { return cell[factor] == value; };
  return !is_python(cell) ||
         (number(cell, kContext) == 1 && !is(kDocuments, 1) &&
          !(is(kTied, 1) && number(cell, kPipeline) > 1) &&
          !is(kOverlap, kRingOverlap) && !is(kCheckpoint, kBudget) &&
          // Each rank has classes.
          !(number(cell, kTensor) == 4 && is(kVocabulary, kFiveClasses)));
}

// What can be combined.
bool rule(const Cell& cell) {
  const int64_t ranks = number(cell, kPipeline) * number(cell, kReplicas) *
                        number(cell, kShards) * number(cell, kContext) *
                        number(cell, kTensor);
  return ranks <= kMostRanks && python_fits(cell) && stages_fit(cell) &&
         reshard_fits(cell) && fits(cell, kPipeline, kSchedule) &&
         fits(cell, kPipeline, kMicrobatches) && fits(cell, kContext, kMethod) &&
         fits(cell, kContext, kBalance) && fits(cell, kTensor, kLossParallel) &&
         fits(cell, kTensor, kOverlap);
}

Layout layout_of(const Cell& cell) {
  const auto at = [&](Factor factor) { return static_cast<size_t>(cell[factor]); };
  Layout layout;
  layout.pipeline = number(cell, kPipeline);
  layout.replicas = number(cell, kReplicas);
  layout.shards = number(cell, kShards);
  layout.context = number(cell, kContext);
  layout.tensor = number(cell, kTensor);
  layout.num_microbatches = number(cell, kAccumulation);
  if (layout.pipeline > 1) {
    layout.schedule = values()[kSchedule][at(kSchedule)];
    layout.stages_per_rank = number(cell, kStages);
    layout.rounds = number(cell, kAccumulation);
    layout.num_microbatches = layout.rounds * number(cell, kMicrobatches);
  }
  constexpr Method kMethods[] = {Method::kRing, Method::kAllGather, Method::kRing,
                                 Method::kUlysses};
  constexpr Balance kBalances[] = {Balance::kHeadTail, Balance::kHeadTail,
                                   Balance::kInOrder, Balance::kByWork};
  constexpr plan::Reshard kReshards[] = {
      plan::Reshard::kDefault, plan::Reshard::kAlways, plan::Reshard::kDefault,
      plan::Reshard::kNever};
  constexpr Mode kModes[] = {Mode::kNone, Mode::kFull, Mode::kSelective,
                             Mode::kPerOperation, Mode::kMemoryBudget};
  layout.method = kMethods[at(kMethod)];
  layout.balance = kBalances[at(kBalance)];
  layout.loss_parallel = at(kLossParallel) != 2;
  layout.overlap =
      cell[kOverlap] == kRingOverlap ? nn::Overlap::kRing : nn::Overlap::kNone;
  layout.reshard = kReshards[at(kReshard)];
  layout.checkpoint = {.mode = kModes[at(kCheckpoint)], .every = 2, .budget = 0.5};
  if (cell[kOffload] != kNone) layout.host = nn::copies_on_host();
  return layout;
}

// As small as the layout lets it be, with a layer for every stage but one.
Problem problem_of(const Cell& cell, const Layout& layout) {
  auto problem = context_problem();
  auto& args = problem.args;
  args.n_layers = std::max<int64_t>(2, layout.pipeline * layout.stages_per_rank - 1);
  args.vocab_size = number(cell, kVocabulary);
  args.tied_embeddings = cell[kTied] != kNone;
  args.document_masks = cell[kDocuments] != kNone;
  // Ulysses gives every rank of context x tensor a key head of its own.
  args.n_kv_heads = std::max<int64_t>(4, layout.context * layout.tensor);
  const int64_t local_rows = layout.pipeline > 1 ? 1 : 2;
  problem.rows = std::max<int64_t>(
      2, local_rows * layout.num_data_ranks() * layout.num_microbatches);
  problem.last_masked = cell[kMasked] == kNone ? 0 : problem.rows / 2;
  problem.num_steps = 3;
  return problem;
}

std::string words_of(const Cell& cell) {
  const auto value = [&](Factor factor) {
    return values()[factor][static_cast<size_t>(cell[factor])];
  };
  std::string words;
  const auto add = [&](const std::string& part) {
    if (!part.empty()) words += (words.empty() ? "" : ", ") + part;
  };
  add(value(kModel));
  const auto add_degree = [&](const char* name, Factor factor) {
    if (number(cell, factor) > 1) add(std::string(name) + " " + value(factor));
  };
  add_degree("pp", kPipeline);
  if (cell[kSchedule] != kNone) {
    add(value(kSchedule) + " with " + value(kStages) + " stages a rank and " +
        value(kMicrobatches) + " microbatches");
  }
  add_degree("dp_replicate", kReplicas);
  add_degree("dp_shard", kShards);
  if (cell[kReshard] != kNone) add("reshard " + value(kReshard));
  add_degree("cp", kContext);
  add(value(kMethod));
  add(value(kBalance));
  add_degree("tp", kTensor);
  add(value(kLossParallel));
  add(value(kOverlap));
  add_degree("accumulation", kAccumulation);
  add(cell[kCheckpoint] == kNone ? "" : "checkpoint " + value(kCheckpoint));
  add(value(kOffload));
  add("vocabulary " + value(kVocabulary));
  for (const Factor factor : {kTied, kMasked, kDocuments}) add(value(factor));
  return words;
}

std::string row_of(const Cell& cell, bool is_quick) {
  std::string row = is_quick ? "quick" : "";
  for (size_t factor = 0; factor < kNumFactors; ++factor) {
    row += "," + values()[factor][static_cast<size_t>(cell[factor])];
  }
  return row + "\n";
}

Matrix make_matrix() {
  std::vector<int> num_values;
  for (const auto& words : values()) {
    num_values.push_back(static_cast<int>(words.size()));
  }
  CoveringArray array(num_values, rule);
  const auto all = array.cover(kLeastCells);
  std::vector<Cell> in_cpp;
  std::copy_if(all.begin(), all.end(), std::back_inserter(in_cpp),
               [](const Cell& cell) { return !is_python(cell); });
  const auto quick = array.choose(in_cpp, kQuickCells);
  Matrix result{.cells = {},
                .quick = {},
                .num_python_cells = static_cast<int64_t>(all.size() - in_cpp.size()),
                .num_possible_pairs = array.num_possible_pairs(),
                .num_covered_pairs = array.num_covered_pairs(all),
                .num_quick_pairs = array.num_covered_pairs(quick),
                .table = "cell,suite"};
  for (const auto* column : kColumns) result.table += std::string(",") + column;
  result.table += "\n";
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& cell = all[i];
    const bool is_quick = std::find(quick.begin(), quick.end(), cell) != quick.end();
    result.table += std::to_string(i + 1) + "," + row_of(cell, is_quick);
    if (is_python(cell)) continue;
    const auto layout = layout_of(cell);
    result.cells.push_back({.number = static_cast<int64_t>(i) + 1,
                            .words = words_of(cell),
                            .layout = layout,
                            .problem = problem_of(cell, layout)});
    if (is_quick) result.quick.push_back(result.cells.back());
  }
  return result;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const MatrixCell& cell) {
  return out << "cell " << cell.number << ": " << cell.words;
}

const Matrix& matrix() {
  static const auto* const made = new Matrix(make_matrix());
  return *made;
}

}  // namespace torchtitan::train::testing
