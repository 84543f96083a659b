#include "train/traffic_formula.h"

#include <vector>

#include "base/checked_math.h"

namespace torchtitan::train::testing {
namespace {

using parallel::context::Method;
using plan::Reshard;

constexpr int64_t kBytes = 8;  // float64, and the int64 of headers
constexpr int64_t kHeader = 10;

// What a rank of a pipeline has of the model.
struct Part {
  int64_t embeddings = 0;
  int64_t blocks = 0;
  int64_t heads = 0;
  // Borders of its stages with one of another rank, before and behind.
  int64_t receives = 0;
  int64_t sends = 0;
};

int64_t rank_of_stage(const Layout& layout, int64_t stage) {
  const bool is_v =
      layout.schedule == "ZBVZeroBubble" || layout.schedule == "DualPipeV";
  return is_v ? std::min(stage, 2 * layout.pipeline - 1 - stage)
              : stage % layout.pipeline;
}

// Segments are dealt out evenly, the first stages have one more.
Part part_of(const Layout& layout, int64_t num_blocks, int64_t rank) {
  const int64_t stages = layout.pipeline * layout.stages_per_rank;
  const int64_t segments = num_blocks + 2;
  Part part;
  int64_t segment = 0;
  for (int64_t stage = 0; stage < stages; ++stage) {
    const int64_t end =
        segment + segments / stages + (stage < segments % stages ? 1 : 0);
    const bool is_mine = rank_of_stage(layout, stage) == rank;
    for (; segment < end; ++segment) {
      if (!is_mine) continue;
      auto& count = segment == 0              ? part.embeddings
                    : segment == segments - 1 ? part.heads
                                              : part.blocks;
      count += 1;
    }
    if (!is_mine) continue;
    if (stage > 0 && rank_of_stage(layout, stage - 1) != rank) part.receives += 1;
    if (stage + 1 < stages && rank_of_stage(layout, stage + 1) != rank) part.sends += 1;
  }
  return part;
}

// Elements that a rank keeps of each group: its rows, rounded up, of each parameter.
std::map<std::string, int64_t> local_numels(const Problem& problem,
                                            const Layout& layout) {
  const auto& args = problem.args;
  const int64_t key_dim = args.n_kv_heads * (args.dim / args.n_heads);
  const auto rows = [&](int64_t count) {
    return base::ceil_div(count, layout.shards * layout.context);
  };
  const auto part = [&](int64_t count) { return count / layout.tensor; };
  std::map<std::string, int64_t> numels;
  numels["tok_embeddings"] = rows(part(args.vocab_size)) * args.dim;
  numels["block"] = 2 * rows(args.dim)                            // two norms
                    + rows(part(args.dim)) * args.dim             // wq
                    + rows(args.dim) * part(args.dim)             // wo
                    + 2 * rows(part(key_dim)) * args.dim          // wk, wv
                    + 2 * rows(part(args.hidden_dim)) * args.dim  // w1, w3
                    + rows(args.dim) * part(args.hidden_dim);     // w2
  numels["head"] = rows(args.dim) + rows(part(args.vocab_size)) * args.dim;
  return numels;
}

// Of segments, for one microbatch.
struct Exchanged {
  const char* verb;
  int64_t calls;
  int64_t numel;
};

// Over the axis "tp", for a microbatch of `tokens` tokens.
std::vector<Exchanged> tensor_exchanges(const Problem& problem, const Layout& layout,
                                        const Part& part, int64_t tokens) {
  const int64_t blocks = part.blocks, dim = problem.args.dim;
  const int64_t forwards = layout.recompute ? 2 : 1;
  const int64_t hidden = tokens * dim;
  // Gathers into each half of a block and of its gradient, into the head; sums out of
  // each half and of its gradient, out of the head's.
  const int64_t gathers = 2 * forwards * blocks + 2 * blocks + part.heads;
  // A block that runs again needs no output.
  const int64_t sums = gathers - (forwards - 1) * blocks;
  std::vector<Exchanged> all = {{"all_gather", 2 * blocks, hidden},  // its input again
                                {"all_reduce", blocks, 2 * dim},     // two norms
                                {"reduce_scatter", part.embeddings, hidden},
                                {"all_gather", part.embeddings, hidden},
                                {"all_reduce", part.heads, dim}};
  if (layout.loss_parallel) {
    // The largest logit, the sum of exponentials and the label's logit of each token.
    all.push_back({"all_gather", part.heads, 3 * tokens * layout.tensor});
  } else {
    all.push_back({"all_gather", part.heads, tokens * problem.args.vocab_size});
    all.push_back({"all_gather", part.heads, hidden});  // its input again
  }
  if (layout.overlap == nn::Overlap::kNone) {
    all.push_back({"all_gather", gathers, hidden});
    all.push_back({"reduce_scatter", sums, hidden});
  } else {
    const int64_t hops = (gathers + sums) * (layout.tensor - 1);
    all.push_back({"send", hops, hidden / layout.tensor});
    all.push_back({"recv", hops, hidden / layout.tensor});
  }
  return all;
}

// The same over the axis "cp", for `tokens` tokens of a rank's.
std::vector<Exchanged> context_exchanges(const Problem& problem, const Layout& layout,
                                         const Part& part, int64_t tokens) {
  const auto& args = problem.args;
  const int64_t blocks = part.blocks, ranks = layout.context;
  const int64_t forwards = layout.recompute ? 2 * blocks : blocks;
  const int64_t query = args.dim / layout.tensor;
  const int64_t key = args.n_kv_heads * (args.dim / args.n_heads) / layout.tensor;
  const int64_t keys = 2 * tokens * key;  // and values
  switch (layout.method) {
    case Method::kAllGather:
      return {{"all_gather", forwards + blocks, ranks * keys},
              {"reduce_scatter", blocks, ranks * keys}};
    case Method::kRing: {
      // Keys in both directions of time, their gradients in one.
      const int64_t hops = (ranks - 1) * (forwards + 2 * blocks);
      return {{"send", hops, keys}, {"recv", hops, keys}};
    }
    case Method::kUlysses:
      return {{"all_to_all", forwards, tokens * query + keys},  // there
              {"all_to_all", forwards, tokens * query},         // outputs back
              {"all_to_all", blocks, 2 * tokens * query},       // with their gradients
              {"all_to_all", blocks, tokens * query + keys}};
  }
  return {};
}

// Gathers of a group in a step. One is saved where the very next computation uses the
// group again: the head's backward follows its forward, and the embedding's next
// forward follows its backward. With kAlways that needs a look ahead, with kNever the
// gathered group is kept in between, too.
int64_t num_gathers(const std::string& group, const Layout& layout) {
  const int64_t microbatches = layout.num_microbatches;
  if (layout.reshard == Reshard::kAlways && layout.overlap_depth == 0) {
    return 2 * microbatches;
  }
  if (layout.pipeline > 1) return 1;
  const bool never = layout.reshard == Reshard::kNever;
  if (group == "tok_embeddings") return never ? 1 : microbatches + 1;
  if (group == "head" || never) return microbatches;
  return 2 * microbatches;
}

// Of a group in a step: of every microbatch, or of all together while it is gathered.
int64_t num_reductions(const Layout& layout) {
  const bool once = layout.pipeline > 1 && layout.reshard != Reshard::kAlways;
  return once ? 1 : layout.num_microbatches;
}

// A sum of calls; those of none are no entry.
class Sum {
 public:
  void add(const char* axis, const char* verb, int64_t calls, int64_t numel) {
    if (calls == 0) return;
    auto& traffic = totals[{axis, verb}];
    traffic.calls += calls;
    traffic.bytes += calls * numel * kBytes;
  }

  TrafficMap totals;
};

}  // namespace

int64_t pipeline_rank(const Layout& layout, int64_t rank) {
  return rank / (layout.num_ranks() / layout.pipeline);
}

TrafficMap traffic_formula(const Problem& problem, const Layout& layout, int64_t rank) {
  const int64_t microbatches = layout.num_microbatches;
  const int64_t shards = layout.shards * layout.context;
  const Part part = part_of(layout, problem.args.n_layers, pipeline_rank(layout, rank));
  const std::map<std::string, int64_t> counts = {{"tok_embeddings", part.embeddings},
                                                 {"block", part.blocks},
                                                 {"head", part.heads}};
  Sum sum;
  for (const auto& [group, numel] : local_numels(problem, layout)) {
    const int64_t count = counts.at(group);
    if (shards > 1) {
      sum.add("fsdp", "all_gather", count * num_gathers(group, layout), shards * numel);
      sum.add("fsdp", "reduce_scatter", count * num_reductions(layout), shards * numel);
    }
    if (layout.replicas > 1) sum.add("dp_replicate", "all_reduce", count, numel);
  }
  if (layout.num_loss_ranks() > 1) {
    sum.add("loss", "all_reduce", 2, 1);  // valid tokens, loss
  }
  if (shards > 1) sum.add("fsdp", "all_reduce", 1, 1);  // squared norm
  const int64_t tokens =
      problem.rows * problem.seq_len / (layout.num_loss_ranks() * microbatches);
  if (layout.context > 1) {
    for (const auto& [verb, calls, numel] :
         context_exchanges(problem, layout, part, tokens)) {
      sum.add("cp", verb, calls * microbatches, numel);
    }
  }
  if (layout.tensor > 1) {
    sum.add("tp", "all_reduce", 1, 1);  // squared norm
    for (const auto& [verb, calls, numel] :
         tensor_exchanges(problem, layout, part, tokens)) {
      sum.add("tp", verb, calls * microbatches, numel);
    }
  }
  if (layout.pipeline > 1) {
    sum.add("pp", "all_reduce", 1, 2);  // squared norm, loss
    // Every microbatch crosses every border with another rank there, its gradient back.
    const int64_t messages = (part.sends + part.receives) * microbatches;
    const int64_t hidden = tokens * problem.args.dim / layout.tensor;
    sum.add("pp", "send", messages, hidden);
    sum.add("pp", "recv", messages, hidden);
  }
  return std::move(sum.totals);
}

TrafficMap headers_of_first_step(const Layout& layout, int64_t rank) {
  // How many segments a stage has does not matter.
  const Part part = part_of(layout, 0, pipeline_rank(layout, rank));
  Sum sum;
  sum.add("pp", "send", part.sends, kHeader);
  sum.add("pp", "recv", part.receives, kHeader);
  return std::move(sum.totals);
}

std::string words_of(const Layout& layout) {
  std::string words;
  const auto add = [&](const std::string& part) {
    words += (words.empty() ? "" : ", ") + part;
  };
  const auto add_degree = [&](const char* name, int64_t degree) {
    if (degree > 1) add(std::string(name) + " " + std::to_string(degree));
  };
  if (layout.pipeline > 1) {
    add("pp " + std::to_string(layout.pipeline) + " by " + layout.schedule);
  }
  add_degree("dp_replicate", layout.replicas);
  add_degree("dp_shard", layout.shards);
  if (layout.shards * layout.context > 1 && layout.reshard != Reshard::kDefault) {
    add(layout.reshard == Reshard::kAlways ? "reshard always" : "reshard never");
    if (layout.overlap_depth == 0) add("without overlap");
  }
  add_degree("cp", layout.context);
  if (layout.context > 1) {
    add(layout.method == Method::kRing        ? "ring"
        : layout.method == Method::kAllGather ? "allgather"
                                              : "ulysses");
  }
  add_degree("tp", layout.tensor);
  if (layout.overlap == nn::Overlap::kRing) add("ring overlap");
  if (!layout.loss_parallel) add("whole logits");
  if (layout.recompute) add("blocks run again");
  return words;
}

}  // namespace torchtitan::train::testing
