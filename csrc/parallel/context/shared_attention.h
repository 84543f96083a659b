// What the methods of context parallelism have in common: where tokens are, and
// autograd around the hand-written passes.
#pragma once

#include "collectives/group.h"
#include "nn/attention_kernel.h"
#include "parallel/context/balance.h"

namespace torchtitan::parallel::context {

class SharedAttention : public nn::AttentionKernel {
 public:
  SharedAttention(collectives::Group group, Balance balance)
      : group_(std::move(group)), balance_(balance) {}

  int64_t ranks() const override { return group_.size(); }
  nn::TokenPlaces places(int64_t tokens, const at::Tensor& document_starts,
                         at::Device device) const override;
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const nn::TokenPlaces& places) const override;

 protected:
  const collectives::Group& group() const { return group_; }
  int64_t rank() const { return group_.rank(); }
  // Of which rank this one has the keys after `hops` hops of a ring.
  int64_t source(int64_t hops) const { return (rank() - hops + ranks()) % ranks(); }
  // `numel` elements by `verb` of this group.
  plan::Exchange exchange(const char* verb, int64_t numel,
                          const at::TensorOptions& options) const;

 private:
  collectives::Group group_;
  Balance balance_;
};

std::shared_ptr<nn::AttentionKernel> gather_attention(collectives::Group group,
                                                      Balance balance);
std::shared_ptr<nn::AttentionKernel> ring_attention(collectives::Group group,
                                                    Balance balance);
std::shared_ptr<nn::AttentionKernel> ulysses_attention(collectives::Group group,
                                                       Balance balance);

}  // namespace torchtitan::parallel::context
