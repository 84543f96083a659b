// What a model says of a parameter before any memory exists.
#pragma once

#include <cstdint>
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

struct ParameterSpec {
  std::string name;  // full name, as in state_dict()
  std::vector<int64_t> shape;
  Init init;
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
