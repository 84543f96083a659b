#include "collectives/local_execute.h"

#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>

#include <vector>

namespace torchtitan::collectives {

namespace {

using at::Tensor;

Tensor piece(const Tensor& tensor, int64_t index, int64_t count) {
  return tensor.view({count, -1}).select(0, index);
}

void copy_flat(const Tensor& out, const Tensor& in) {
  // A rank's own piece may already lie in its output.
  if (out.const_data_ptr() != in.const_data_ptr()) out.view(-1).copy_(in.view(-1));
}

void all_reduce(std::span<const Operation> operations) {
  const Tensor& first = operations.front().out;
  if (operations.front().op == ReduceOp::kSum) {
    std::vector<Tensor> summands;
    for (const Operation& operation : operations) summands.push_back(operation.out);
    sum_in_order(first, summands);
  } else {
    const bool is_max = operations.front().op == ReduceOp::kMax;
    for (const Operation& operation : operations.subspan(1)) {
      const Tensor other = operation.out.to(first.device()).view_as(first);
      first.copy_(is_max ? at::maximum(first, other) : at::minimum(first, other));
    }
  }
  for (const Operation& operation : operations.subspan(1)) {
    copy_flat(operation.out, first);
  }
}

void all_gather(std::span<const Operation> operations) {
  const auto size = static_cast<int64_t>(operations.size());
  for (const Operation& receiver : operations) {
    if (receiver.out.numel() == 0) continue;
    for (int64_t rank = 0; rank < size; ++rank) {
      copy_flat(piece(receiver.out, rank, size), operations[rank].in);
    }
  }
}

void reduce_scatter(std::span<const Operation> operations) {
  const auto size = static_cast<int64_t>(operations.size());
  for (int64_t rank = 0; rank < size; ++rank) {
    if (operations[rank].out.numel() == 0) continue;
    std::vector<Tensor> summands;
    for (const Operation& sender : operations) {
      summands.push_back(piece(sender.in, rank, size));
    }
    sum_in_order(operations[rank].out, summands);
  }
}

void all_to_all(std::span<const Operation> operations) {
  const auto size = static_cast<int64_t>(operations.size());
  std::vector<int64_t> read(size, 0);  // rows already sent by each rank
  for (int64_t receiver = 0; receiver < size; ++receiver) {
    int64_t written = 0;
    for (int64_t sender = 0; sender < size; ++sender) {
      const int64_t rows = operations[receiver].out_splits[sender];
      const int64_t sent = operations[sender].in_splits[receiver];
      TORCH_CHECK_VALUE(rows == sent, "all_to_all: rank ", sender, " sends ", sent,
                        " rows to rank ", receiver, ", which expects ", rows);
      operations[receiver]
          .out.narrow(0, written, rows)
          .copy_(operations[sender].in.narrow(0, read[sender], rows));
      written += rows;
      read[sender] += rows;
    }
  }
}

void broadcast(std::span<const Operation> operations) {
  const Tensor& source = operations[operations.front().peer].out;
  for (const Operation& operation : operations) copy_flat(operation.out, source);
}

}  // namespace

void sum_in_order(const Tensor& out, std::span<const Tensor> in) {
  const auto part = [&out](const Tensor& tensor) {
    return tensor.to(out.device()).view(-1);
  };
  const bool narrow =
      out.scalar_type() == at::kBFloat16 || out.scalar_type() == at::kHalf;
  Tensor total = narrow ? part(in.front()).to(at::kFloat) : out.view(-1);
  if (!narrow) copy_flat(total, part(in.front()));
  for (const Tensor& tensor : in.subspan(1)) total.add_(part(tensor));
  if (narrow) out.view(-1).copy_(total);
}

void execute_collective(std::span<const Operation> operations) {
  switch (operations.front().verb) {
    case Verb::kAllReduce: return all_reduce(operations);
    case Verb::kAllGather: return all_gather(operations);
    case Verb::kReduceScatter: return reduce_scatter(operations);
    case Verb::kAllToAll: return all_to_all(operations);
    case Verb::kBroadcast: return broadcast(operations);
    case Verb::kSend:
    case Verb::kRecv:
    case Verb::kBarrier: break;
  }
  TORCH_INTERNAL_ASSERT(false, "not a collective of all ranks");
}

}  // namespace torchtitan::collectives
