#include "parallel/context/shared_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include "parallel/context/attention.h"

namespace torchtitan::parallel::context {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Call final : torch::CustomClassHolder {
  std::shared_ptr<const nn::AttentionKernel> kernel;
  nn::TokenPlaces places;
};

class Attend final : public torch::autograd::Function<Attend> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v,
                            const c10::intrusive_ptr<Call>& call) {
    const auto operands =
        call->kernel->enter({q.contiguous(), k.contiguous(), v.contiguous()});
    const auto result = call->kernel->forward(operands, call->places);
    ctx->save_for_backward({operands.q, operands.k, operands.v, result.o, result.lse});
    ctx->saved_data["call"] = at::IValue::make_capsule(call);
    return result.o;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const auto& call = static_cast<const Call&>(*capsule);
    const auto d =
        call.kernel->backward({saved[0], saved[1], saved[2]}, call.places,
                              {saved[3], saved[4]}, gradients[0].contiguous());
    return {d.q, d.k, d.v, at::Tensor()};
  }
};

}  // namespace

nn::TokenPlaces SharedAttention::places(int64_t tokens,
                                        const at::Tensor& document_starts,
                                        at::Device device) const {
  const auto all = deal_out(balance_, ranks(), tokens, document_starts, device);
  return {all, all.select(0, rank()), document_starts};
}

at::Tensor SharedAttention::attend(const at::Tensor& q, const at::Tensor& k,
                                   const at::Tensor& v,
                                   const nn::TokenPlaces& places) const {
  auto call = c10::make_intrusive<Call>();
  call->kernel = shared_from_this();
  call->places = places;
  return Attend::apply(q, k, v, call);
}

plan::Exchange SharedAttention::exchange(const char* verb, int64_t numel,
                                         const at::TensorOptions& options) const {
  const auto bytes = static_cast<int64_t>(options.dtype().itemsize());
  return {group_.name(), verb, ranks(), numel * bytes};
}

Method parse_method(const std::string& name) {
  if (name == "allgather") return Method::kAllGather;
  if (name == "alltoall") return Method::kRing;
  TORCH_CHECK_VALUE(name == "ulysses",
                    "context parallel method: expected allgather, alltoall or ulysses, "
                    "found '",
                    name, "'");
  return Method::kUlysses;
}

std::shared_ptr<nn::AttentionKernel> attention(const collectives::Group& group,
                                               Method method, Balance balance) {
  if (group.size() == 1) return nn::local_attention();
  switch (method) {
    case Method::kAllGather: return gather_attention(group, balance);
    case Method::kRing: return ring_attention(group, balance);
    case Method::kUlysses: return ulysses_attention(group, balance);
  }
  TORCH_INTERNAL_ASSERT(false);
}

}  // namespace torchtitan::parallel::context
