#include "generation/decoder.h"

#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <map>
#include <string>

#include "base/checked_math.h"

namespace torchtitan::generation {
namespace {

at::Tensor to_tensor(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::TensorOptions(at::kLong)).to(device);
}

}  // namespace

Decoder::Decoder(DecoderOptions options)
    : options_(std::move(options)), device_(at::kCPU) {
  TORCH_CHECK_VALUE(!options_.model.segments.empty() && !options_.parameters.empty() &&
                        !options_.parameters[0].empty(),
                    "Decoder: expected a model with parameters");
  device_ = options_.parameters[0][0].device();
}

int64_t Decoder::padded(int64_t tokens) const {
  // The ranks of the axis deal tokens out in equal stretches.
  return base::ceil_div(tokens, options_.axis.size()) * options_.axis.size();
}

void Decoder::note(size_t row, int64_t token, int64_t position) {
  if (token == options_.document_end) document_starts_[row] = position + 1;
}

at::Tensor Decoder::read(const std::vector<std::vector<int64_t>>& prompts) {
  std::vector<int64_t> lengths;
  for (const auto& prompt : prompts) {
    lengths.push_back(static_cast<int64_t>(prompt.size()));
  }
  int64_t longest = 0;
  for (const int64_t length : lengths) longest = std::max(longest, length);
  const int64_t count = padded(longest);
  options_.cache->begin(lengths, count);

  document_starts_.assign(prompts.size(), 0);
  // Padding stands behind a prompt, where no token of it looks.
  std::vector<int64_t> tokens, starts, last;
  for (size_t row = 0; row < prompts.size(); ++row) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = i < lengths[row] ? prompts[row][static_cast<size_t>(i)] : 0;
      tokens.push_back(token);
      starts.push_back(document_starts_[row]);
      if (i < lengths[row]) note(row, token, i);
    }
    last.push_back(static_cast<int64_t>(row) * count + lengths[row] - 1);
  }
  const auto rows = static_cast<int64_t>(prompts.size());
  return run(to_tensor(tokens, device_).view({rows, count}), starts, &last);
}

at::Tensor Decoder::read_next(const std::vector<int64_t>& tokens) {
  const auto& cache = options_.cache;
  TORCH_CHECK_VALUE(static_cast<int64_t>(tokens.size()) == cache->rows(),
                    "Decoder: expected one token for each of ", cache->rows(),
                    " rows, got ", tokens.size());
  const int64_t count = padded(cache->rows());
  auto starts = document_starts_;  // of these tokens, before they end a document
  for (size_t row = 0; row < tokens.size(); ++row) {
    note(row, tokens[row], cache->lengths()[row]);
  }
  cache->extend(starts, count);
  auto all = tokens;
  all.resize(static_cast<size_t>(count), 0);
  starts.resize(static_cast<size_t>(count), 0);
  return run(to_tensor(all, device_).unsqueeze(0), starts, nullptr);
}

void Decoder::keep(const std::vector<int64_t>& rows) {
  options_.cache->keep(rows);
  std::vector<int64_t> starts;
  for (const int64_t row : rows) {
    starts.push_back(document_starts_[static_cast<size_t>(row)]);
  }
  document_starts_ = std::move(starts);
}

at::Tensor Decoder::run(const at::Tensor& tokens, const std::vector<int64_t>& starts,
                        const std::vector<int64_t>* last) {
  const c10::AutoGradMode off(false);
  std::map<std::string, at::Tensor> values = {{"input", tokens}};
  if (options_.document_end) {
    values["document_starts"] = to_tensor(starts, device_).view(tokens.sizes());
  }
  const auto& segments = options_.model.segments;
  for (const auto& segment : segments) {
    if (segment == segments.back() && last != nullptr) {
      values["h"] = select(values.at("h"), *last);
    }
    nn::TensorList inputs, parameters;
    for (const auto& name : segment->inputs()) inputs.push_back(values.at(name));
    for (const auto& reference : segment->parameters()) {
      parameters.push_back(options_.parameters.at(static_cast<size_t>(reference.group))
                               .at(static_cast<size_t>(reference.slot)));
    }
    auto outputs = segment->forward(inputs, parameters, nullptr);
    for (size_t i = 0; i < outputs.size(); ++i) {
      values[segment->outputs()[i]] = std::move(outputs[i]);
    }
  }
  return values.at("logits").select(0, 0).narrow(0, 0, options_.cache->rows());
}

// [B, s, E] of each rank -> [1, n, E]: of the tokens wanted, with padding, its stretch.
at::Tensor Decoder::select(const at::Tensor& hidden,
                           const std::vector<int64_t>& last) const {
  const auto& axis = options_.axis;
  const int64_t share = padded(static_cast<int64_t>(last.size())) / axis.size();
  auto wanted = last;
  wanted.resize(static_cast<size_t>(share * axis.size()), 0);
  const auto own = to_tensor(wanted, device_).narrow(0, axis.rank() * share, share);
  return axis.gather(hidden.contiguous().flatten(0, 1))
      .index_select(0, own)
      .unsqueeze(0);
}

}  // namespace torchtitan::generation
