#include "data/token_store.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "base/checked_math.h"
#include "base/errors.h"

namespace torchtitan::data {
namespace {

using base::check_value;

constexpr int64_t kIgnored = -100;

void check_request(const RowRequest& request) {
  check_value(request.first_sample >= 0 && request.num_rows > 0 &&
                  request.seq_len > 0 && request.vocab_size > 0,
              "gather: expected first_sample >= 0 and positive num_rows, seq_len and "
              "vocab_size, got ",
              request.first_sample, ", ", request.num_rows, ", ", request.seq_len, ", ",
              request.vocab_size);
}

void check_sample(std::span<const int64_t> tokens, int64_t sample, int64_t first_token,
                  int64_t vocab_size) {
  const auto stray = std::find_if(tokens.begin(), tokens.end(),
                                  [&](int64_t id) { return id >= vocab_size; });
  check_value(stray == tokens.end(), "sample ", sample, ", token ",
              first_token + (stray - tokens.begin()), " of the dataset has id ",
              stray == tokens.end() ? 0 : *stray, ", expected 0 <= id < ", vocab_size,
              " (the model's vocabulary)");
}

}  // namespace

std::string TokenStore::attach(const std::string& path) {
  auto shard = std::make_shared<const TokenShard>(path);
  std::string note = shard->note();
  const std::lock_guard lock(mutex_);
  int64_t first = 0;
  if (!entries_.empty()) {
    first = entries_.back().first_token + entries_.back().shard->num_tokens();
  }
  entries_.push_back({std::move(shard), first, std::make_shared<std::once_flag>()});
  return note;
}

void TokenStore::truncate(int64_t num_shards) {
  const std::lock_guard lock(mutex_);
  const auto size = static_cast<int64_t>(entries_.size());
  check_value(num_shards >= 0, "truncate: expected num_shards >= 0, got ", num_shards);
  entries_.resize(static_cast<size_t>(std::min(num_shards, size)));
}

std::vector<TokenStore::Entry> TokenStore::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

int64_t TokenStore::num_shards() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(entries_.size());
}

int64_t TokenStore::num_tokens() const {
  const std::lock_guard lock(mutex_);
  if (entries_.empty()) return 0;
  return entries_.back().first_token + entries_.back().shard->num_tokens();
}

int64_t TokenStore::shard_of(int64_t position) const {
  const std::lock_guard lock(mutex_);
  const auto behind =
      std::partition_point(entries_.begin(), entries_.end(), [&](const Entry& entry) {
        return entry.first_token + entry.shard->num_tokens() <= position;
      });
  return behind - entries_.begin();
}

int64_t TokenStore::first_damaged() const {
  const std::vector<Entry> entries = this->entries();
  const auto damaged =
      std::find_if(entries.begin(), entries.end(), [](const Entry& entry) {
        try {
          entry.shard->verify();
        } catch (const DamagedShard&) {
          return true;
        }
        return false;
      });
  return damaged - entries.begin();
}

TokenBatch TokenStore::gather(const RowRequest& request) const {
  check_request(request);
  const std::vector<Entry> entries = this->entries();
  const int64_t total =
      entries.empty() ? 0
                      : entries.back().first_token + entries.back().shard->num_tokens();
  const auto read = [&](int64_t position, std::span<int64_t> out) {
    while (!out.empty()) {
      const int64_t token =
          request.at_end == AtEnd::kRepeat ? position % total : position;
      const Entry& entry = *std::prev(std::upper_bound(
          entries.begin(), entries.end(), token,
          [](int64_t value, const Entry& other) { return value < other.first_token; }));
      std::call_once(*entry.verified, [&] { entry.shard->verify(); });
      const int64_t inside = token - entry.first_token;
      const auto count =
          std::min(out.size(), static_cast<size_t>(entry.shard->num_tokens() - inside));
      entry.shard->copy(inside, out.first(count));
      out = out.subspan(count);
      position += static_cast<int64_t>(count);
    }
  };

  const int64_t length = request.seq_len;
  TokenBatch batch{at::zeros({request.num_rows, length}, at::kLong),
                   at::full({request.num_rows, length}, kIgnored, at::kLong)};
  int64_t* input = batch.input.mutable_data_ptr<int64_t>();
  int64_t* labels = batch.labels.mutable_data_ptr<int64_t>();
  std::vector<int64_t> tokens(static_cast<size_t>(length) + 1);
  for (int64_t row = 0; row < request.num_rows; ++row) {
    const int64_t sample = base::checked_add(request.first_sample, row);
    const int64_t first = base::checked_mul(sample, length);
    const bool fits = base::checked_add(first, length) < total;
    if (!fits && request.at_end == AtEnd::kStop) break;
    check_value(total > 0 && (fits || request.at_end == AtEnd::kRepeat),
                "gather: sample ", sample, " needs tokens ", first, " to ",
                first + length, ", but only ", total, " are there");
    read(first, tokens);
    check_sample(tokens, sample, first, request.vocab_size);
    std::copy(tokens.begin(), tokens.end() - 1, input + row * length);
    std::copy(tokens.begin() + 1, tokens.end(), labels + row * length);
  }
  return batch;
}

void check_token_ids(const at::Tensor& input, const at::Tensor& labels,
                     int64_t vocab_size) {
  const auto check = [&](const at::Tensor& ids, const char* name, bool may_ignore) {
    check_value(
        ids.device().is_cpu() && ids.scalar_type() == at::kLong && ids.dim() > 0,
        "check_token_ids: expected int64 ", name, " on the CPU, got ", ids.toString(),
        " of ", ids.dim(), " dims");
    const at::Tensor flat = ids.contiguous();
    const int64_t length = std::max<int64_t>(1, ids.size(-1));
    const int64_t* values = flat.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const bool valid = (values[i] >= 0 && values[i] < vocab_size) ||
                         (may_ignore && values[i] == kIgnored);
      check_value(valid, "batch: ", name, " row ", i / length, ", position ",
                  i % length, " has token id ", values[i], ", expected 0 <= id < ",
                  vocab_size);
    }
  };
  check_value(input.sizes() == labels.sizes(), "check_token_ids: input has shape ",
              input.sizes(), ", labels have ", labels.sizes());
  check(input, "input", false);
  check(labels, "labels", true);
}

}  // namespace torchtitan::data
