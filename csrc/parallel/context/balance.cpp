#include "parallel/context/balance.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace torchtitan::parallel::context {
namespace {

// Queries that are dealt out together: few enough for a fine balance, enough to fill
// the blocks of a kernel.
constexpr int64_t kSmallestBlock = 64;

int64_t block_size(int64_t tokens) {
  const int64_t half = tokens % 2 == 0 ? tokens / 2 : tokens;
  for (int64_t size = kSmallestBlock; size < half; ++size) {
    if (half % size == 0) return size;
  }
  return half;
}

// Keys that the queries of each block see, over all rows.
std::vector<int64_t> work_of_blocks(int64_t length, int64_t size,
                                    const at::Tensor& document_starts) {
  std::vector<int64_t> work(static_cast<size_t>(length / size), 0);
  const auto starts =
      document_starts.defined() ? document_starts.cpu().contiguous() : document_starts;
  const int64_t rows = starts.defined() ? starts.size(0) : 1;
  for (int64_t row = 0; row < rows; ++row) {
    const auto* start =
        starts.defined() ? starts.const_data_ptr<int64_t>() + row * length : nullptr;
    for (int64_t p = 0; p < length; ++p) {
      work[static_cast<size_t>(p / size)] += p + 1 - (start == nullptr ? 0 : start[p]);
    }
  }
  return work;
}

void by_work(int64_t ranks, int64_t tokens, const at::Tensor& document_starts,
             int64_t* positions) {
  const int64_t size = block_size(tokens);
  const auto work = work_of_blocks(ranks * tokens, size, document_starts);
  std::vector<int64_t> blocks(work.size());
  std::iota(blocks.begin(), blocks.end(), 0);
  std::stable_sort(blocks.begin(), blocks.end(), [&](int64_t a, int64_t b) {
    return work[static_cast<size_t>(a)] > work[static_cast<size_t>(b)];
  });
  std::vector<std::vector<int64_t>> hands(static_cast<size_t>(ranks));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const size_t round = i / hands.size(), turn = i % hands.size();
    hands[round % 2 == 0 ? turn : hands.size() - 1 - turn].push_back(blocks[i]);
  }
  for (auto& hand : hands) {
    std::sort(hand.begin(), hand.end());
    for (const int64_t block : hand) {
      std::iota(positions, positions + size, block * size);
      positions += size;
    }
  }
}

}  // namespace

Balance parse_balance(const std::string& name) {
  if (name == "headtail") return Balance::kHeadTail;
  if (name == "none") return Balance::kInOrder;
  TORCH_CHECK_VALUE(
      name == "ptrr",
      "context parallel balance: expected headtail, none or ptrr, found '", name, "'");
  return Balance::kByWork;
}

at::Tensor deal_out(Balance balance, int64_t ranks, int64_t tokens,
                    const at::Tensor& document_starts, at::Device device) {
  TORCH_CHECK_VALUE(balance != Balance::kHeadTail || tokens % 2 == 0,
                    "context parallel: expected sequences of a multiple of ", 2 * ranks,
                    " tokens to deal out head and tail, found ", ranks * tokens);
  TORCH_CHECK_VALUE(
      !document_starts.defined() || document_starts.size(1) == ranks * tokens,
      "context parallel: expected document_starts of whole sequences, [B, ",
      ranks * tokens, "], found shape ", document_starts.sizes());
  if (document_starts.defined()) device = document_starts.device();
  const auto options = at::TensorOptions().dtype(at::kLong);
  if (device.is_meta()) return at::empty({ranks, tokens}, options.device(device));
  const auto all = at::empty({ranks, tokens}, options);
  auto* const positions = all.mutable_data_ptr<int64_t>();
  switch (balance) {
    case Balance::kHeadTail:
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const int64_t half = tokens / 2;
        auto* const own = positions + rank * tokens;
        std::iota(own, own + half, rank * half);
        std::iota(own + half, own + tokens, (2 * ranks - 1 - rank) * half);
      }
      break;
    case Balance::kInOrder: std::iota(positions, positions + ranks * tokens, 0); break;
    case Balance::kByWork: by_work(ranks, tokens, document_starts, positions); break;
  }
  return all.to(device);
}

}  // namespace torchtitan::parallel::context
