#include "collectives/backend.h"

#include <algorithm>
#include <sstream>

namespace torchtitan::collectives {

namespace {

int64_t tensor_bytes(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
}

std::string_view reduce_op_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum: return "sum";
    case ReduceOp::kMax: return "max";
    case ReduceOp::kMin: return "min";
  }
  return "unknown";
}

}  // namespace

std::string_view verb_name(Verb verb) {
  switch (verb) {
    case Verb::kAllReduce: return "all_reduce";
    case Verb::kAllGather: return "all_gather";
    case Verb::kReduceScatter: return "reduce_scatter";
    case Verb::kAllToAll: return "all_to_all";
    case Verb::kBroadcast: return "broadcast";
    case Verb::kSend: return "send";
    case Verb::kRecv: return "recv";
    case Verb::kBarrier: return "barrier";
  }
  return "unknown";
}

std::string describe(const Operation& operation) {
  std::ostringstream text;
  text << verb_name(operation.verb);
  const at::Tensor& tensor = operation.out.defined() ? operation.out : operation.in;
  if (tensor.defined()) text << " of " << tensor.scalar_type();
  // Ranks of an all_to_all may differ in their number of rows.
  if (tensor.defined() && operation.verb != Verb::kAllToAll) {
    text << "[" << tensor.numel() << "]";
  }
  if (operation.op != ReduceOp::kSum)
    text << " (" << reduce_op_name(operation.op) << ")";
  if (operation.verb == Verb::kBroadcast) text << " from rank " << operation.peer;
  return text.str();
}

int64_t payload_bytes(const Operation& operation) {
  if (operation.verb == Verb::kAllToAll) return tensor_bytes(operation.in);
  return std::max(tensor_bytes(operation.out), tensor_bytes(operation.in));
}

}  // namespace torchtitan::collectives
