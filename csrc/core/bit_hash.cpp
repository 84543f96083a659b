#include "core/bit_hash.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace torchtitan::core {

namespace {

using at::Tensor;

// Threads hash chunks, whose hashes are then combined in order.
constexpr size_t kChunkBytes = size_t{1} << 18;
// Independent chains, so that one multiplication does not wait for the one before.
constexpr size_t kLanes = 8;
constexpr size_t kBlockBytes = kLanes * sizeof(uint64_t);
// Odd, so that a product with it can be undone: no difference is lost.
constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;
// Words of one product by torch's operators, which makes temporaries of 8 bytes each.
constexpr int64_t kSliceWords = int64_t{1} << 22;

// For a given word every state has another result, and the other way round.
uint64_t mixed(uint64_t state, uint64_t word) {
  const uint64_t product = (state ^ word) * kFactor;
  return product ^ product >> 32;
}

uint64_t hash_chunk(const uint8_t* data, size_t size) {
  std::array<uint64_t, kLanes> lanes;
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = lane + 1;
  std::array<uint64_t, kLanes> words;
  for (; size >= kBlockBytes; data += kBlockBytes, size -= kBlockBytes) {
    std::memcpy(words.data(), data, kBlockBytes);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = mixed(lanes[lane], words[lane]);
    }
  }
  words.fill(0);
  if (size > 0) std::memcpy(words.data(), data, size);
  uint64_t hash = size;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    hash = mixed(hash, mixed(lanes[lane], words[lane]));
  }
  return hash;
}

int64_t hash_on_cpu(const Tensor& tensor) {
  const Tensor held = tensor.contiguous();
  const auto* const data = static_cast<const uint8_t*>(held.const_data_ptr());
  const size_t size = held.nbytes();
  std::vector<uint64_t> chunks((size + kChunkBytes - 1) / kChunkBytes);
  at::parallel_for(
      0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
        for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
          const size_t start = i * kChunkBytes;
          chunks[i] = hash_chunk(data + start, std::min(kChunkBytes, size - start));
        }
      });
  uint64_t hash = size;
  for (const uint64_t chunk : chunks) hash = mixed(hash, chunk);
  return std::bit_cast<int64_t>(hash);
}

// An odd factor for every place, so that words that trade places are noticed.
Tensor factors(int64_t count, const Tensor& like) {
  const Tensor places = at::arange(1, count + 1, like.options().dtype(at::kLong));
  const Tensor spread = places.mul(std::bit_cast<int64_t>(kFactor));
  return spread.bitwise_xor(spread.bitwise_right_shift(29)).bitwise_or(1);
}

Tensor hash_by_operators(const Tensor& tensor) {
  const Tensor bytes = tensor.contiguous().view(-1).view(at::kByte);
  const bool whole = bytes.numel() % static_cast<int64_t>(sizeof(int32_t)) == 0;
  const Tensor words = whole ? bytes.view(at::kInt) : bytes;
  Tensor hash = at::zeros({}, words.options().dtype(at::kLong));
  hash.add_(words.numel());
  if (words.numel() == 0) return hash;
  const Tensor all = factors(std::min(kSliceWords, words.numel()), words);
  for (const Tensor& slice : words.split(kSliceWords)) {
    const Tensor own = all.slice(0, 0, slice.numel());
    hash.mul_(std::bit_cast<int64_t>(kFactor));
    hash.add_(slice.to(at::kLong).mul_(own).sum());
  }
  return hash;
}

}  // namespace

Tensor hash_bits(const std::vector<Tensor>& tensors) {
  const bool on_cpu = std::all_of(tensors.begin(), tensors.end(),
                                  [](const Tensor& each) { return each.is_cpu(); });
  if (!on_cpu) return hash_bits_by_operators(tensors);
  Tensor hashes = at::empty({static_cast<int64_t>(tensors.size())}, at::kLong);
  auto* const out = hashes.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < tensors.size(); ++i) out[i] = hash_on_cpu(tensors[i]);
  return hashes;
}

Tensor hash_bits_by_operators(const std::vector<Tensor>& tensors) {
  const at::NoGradGuard no_grad;
  if (tensors.empty()) return at::empty({0}, at::kLong);
  std::vector<Tensor> hashes;
  for (const Tensor& each : tensors) hashes.push_back(hash_by_operators(each));
  return at::stack(hashes).cpu();
}

}  // namespace torchtitan::core
