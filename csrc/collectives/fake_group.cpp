#include "collectives/fake_group.h"

#include <numeric>

#include "collectives/backend.h"

namespace torchtitan::collectives {

namespace {

class FakeBackend : public Backend {
 public:
  FakeBackend(int64_t rank, int64_t size) : rank_(rank), size_(size) {}

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }

  std::shared_ptr<Work> start(Operation operation) override {
    const at::Tensor& out = operation.out;
    const at::Tensor& in = operation.in;
    switch (operation.verb) {
      case Verb::kAllGather:
        // A copy of `in`, because it may be a piece of `out`.
        out.view({size_, -1}).copy_(in.reshape({1, -1}).clone());
        break;
      case Verb::kReduceScatter:
        out.view(-1).copy_(in.view({size_, -1}).select(0, rank_));
        break;
      case Verb::kAllToAll: keep_own_rows(operation); break;
      case Verb::kRecv: out.zero_(); break;
      default: break;
    }
    return nullptr;
  }

 private:
  void keep_own_rows(const Operation& operation) const {
    const auto before = [this](const std::vector<int64_t>& splits) {
      return std::accumulate(splits.begin(), splits.begin() + rank_, int64_t{0});
    };
    const int64_t rows = operation.in_splits[rank_];
    operation.out.zero_();
    operation.out.narrow(0, before(operation.out_splits), rows)
        .copy_(operation.in.narrow(0, before(operation.in_splits), rows));
  }

  int64_t rank_;
  int64_t size_;
};

}  // namespace

Group fake_group(std::string name, int64_t rank, int64_t size) {
  TORCH_CHECK_VALUE(0 <= rank && rank < size,
                    "fake_group: expected 0 <= rank < size, "
                    "but got rank ",
                    rank, " of ", size);
  if (size == 1) return Group(std::move(name));
  return Group(std::move(name), std::make_shared<FakeBackend>(rank, size));
}

}  // namespace torchtitan::collectives
