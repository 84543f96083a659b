// What a model says of a parameter before any memory exists.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace torchtitan::nn {

// Distribution of the initial numbers. The cut-offs of kTruncatedNormal are absolute.
struct Init {
  enum class Kind { kConstant, kNormal, kTruncatedNormal };
  Kind kind;
  double mean;  // the value, for kConstant
  double std;
  double low;
  double high;

  static Init constant(double value) { return {Kind::kConstant, value, 0, 0, 0}; }
  static Init normal(double std) { return {Kind::kNormal, 0, std, 0, 0}; }
  static Init truncated_normal(double std, double low, double high) {
    return {Kind::kTruncatedNormal, 0, std, low, high};
  }
};

// Where a piece of a parameter lies in the whole of it.
struct Piece {
  std::vector<int64_t> whole_shape;
  std::vector<int64_t> offset;  // of the piece's first element, by dim
};

struct ParameterSpec {
  std::string name;            // full name, as in state_dict()
  std::vector<int64_t> shape;  // of what segments are given on this rank
  Init init;
  // Of what they are given, where it is not the whole parameter (tensor parallelism).
  std::optional<Piece> piece = std::nullopt;
  // False where an earlier rank of the tensor axis has the same numbers: it saves them
  // and counts them in the norm.
  bool is_first_copy = true;

  const std::vector<int64_t>& whole_shape() const {
    return piece ? piece->whole_shape : shape;
  }
  std::vector<int64_t> offset() const {
    return piece ? piece->offset : std::vector<int64_t>(shape.size(), 0);
  }
};

// Parameters that are gathered, reduced and stepped together.
struct ParameterGroupSpec {
  std::string name;
  std::vector<ParameterSpec> parameters;
  // Gathered once a microbatch and kept, whatever the layout would do: code that runs
  // between segments reads them.
  bool stays_gathered = false;
};

}  // namespace torchtitan::nn
