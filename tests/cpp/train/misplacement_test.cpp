// Any mistake about where tokens are is noticed by the equality check.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "train/equality_table.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {
namespace {

using parallel::context::Method;

// A kernel with a mistake about where tokens are.
class Misplacing final : public nn::AttentionKernel {
 public:
  using Mistake = std::function<void(nn::TokenPlaces&)>;
  enum class Reader { kRotation, kAttention };  // who is misled
  Misplacing(std::shared_ptr<nn::AttentionKernel> inner, Reader reader, Mistake mistake)
      : inner_(std::move(inner)), reader_(reader), mistake_(std::move(mistake)) {}

  int64_t ranks() const override { return inner_->ranks(); }
  nn::TokenPlaces places(int64_t tokens, const at::Tensor& starts,
                         at::Device device) const override {
    return told(Reader::kRotation, inner_->places(tokens, starts, device));
  }
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const nn::TokenPlaces& here) const override {
    return inner_->attend(q, k, v, of_attention(here));
  }
  Operands enter(Operands x) const override { return inner_->enter(x); }
  Result forward(const Operands& x, const nn::TokenPlaces& here) const override {
    return inner_->forward(x, of_attention(here));
  }
  Operands backward(const Operands& x, const nn::TokenPlaces& here,
                    const Result& result, const at::Tensor& d_o) const override {
    return inner_->backward(x, of_attention(here), result, d_o);
  }
  std::vector<plan::Exchange> forward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return inner_->forward_exchanges(sizes);
  }
  std::vector<plan::Exchange> backward_exchanges(
      const nn::AttentionSizes& sizes) const override {
    return inner_->backward_exchanges(sizes);
  }

 private:
  nn::TokenPlaces told(Reader reader, nn::TokenPlaces places) const {
    if (reader == reader_) mistake_(places);
    return places;
  }
  nn::TokenPlaces of_attention(const nn::TokenPlaces& here) const {
    return told(
        Reader::kAttention,
        inner_->places(here.own.size(0), here.document_starts, here.own.device()));
  }

  std::shared_ptr<nn::AttentionKernel> inner_;
  Reader reader_;
  Mistake mistake_;
};

class MisplacedTest : public ::testing::TestWithParam<Method> {
 protected:
  // What is noticed when every rank makes the mistake; empty if nothing.
  std::string noticed(Misplacing::Reader reader,
                      const Misplacing::Mistake& mistake) const {
    const auto problem = with_documents(context_problem());
    const Layout layout = {.context = 2, .method = GetParam()};
    const auto result = run_step(
        problem, layout, {}, [&](const std::shared_ptr<nn::AttentionKernel>& kernel) {
          return std::make_shared<Misplacing>(kernel, reader, mistake);
        });
    return difference(result, run_reference(problem));
  }
};

TEST_P(MisplacedTest, EveryMistakeAboutPositionsAndDocumentsIsNoticed) {
  using Reader = Misplacing::Reader;
  const auto nothing = [](nn::TokenPlaces&) {};
  EXPECT_EQ(noticed(Reader::kAttention, nothing), "");
  EXPECT_EQ(noticed(Reader::kRotation, nothing), "");
  const std::pair<Reader, Misplacing::Mistake> mistakes[] = {
      // As if nobody shared the sequence.
      {Reader::kRotation,
       [](auto& places) { places.own = at::arange(places.own.size(0), at::kLong); }},
      {Reader::kAttention,
       [](auto& places) { places.positions = places.positions.flip({0}); }},
      {Reader::kAttention,
       [](auto& places) {
         places.own = places.own.roll(1);
         places.positions = places.positions.roll(1, 1);
       }},
      {Reader::kAttention, [](auto& places) { places.document_starts = at::Tensor(); }},
      {Reader::kAttention, [](auto& places) {
         places.document_starts = places.document_starts.add(1).minimum(
             at::arange(places.document_starts.size(1)));
       }}};
  Mutants mutants;
  for (const auto& [reader, mistake] : mistakes) {
    const bool is_noticed = !noticed(reader, mistake).empty();
    EXPECT_TRUE(is_noticed) << "mistake " << mutants.tried;
    ++mutants.tried;
    mutants.killed += is_noticed ? 1 : 0;
  }
  constexpr const char* kNames[] = {"allgather", "ring", "ulysses"};
  record_mutants(std::string("Cp2Documents, positions and masks, ") +
                     kNames[static_cast<int>(GetParam())],
                 mutants);
}

INSTANTIATE_TEST_SUITE_P(Mutation, MisplacedTest,
                         ::testing::Values(Method::kAllGather, Method::kRing,
                                           Method::kUlysses));

}  // namespace
}  // namespace torchtitan::train::testing
