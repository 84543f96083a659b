// Runs with one mistake each, which the comparison with one process must notice. The
// product has no place to put them: a mistake is made by a group, attention kernel,
// segment or optimizer around the product's own, which changes what goes in or comes
// out as the wrong line of code would have.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "collectives/backend.h"
#include "train/tiny_llama.h"

namespace torchtitan::train::testing {

struct Mistake {
  std::string name;
  Changes changes;
};

// Expects that the run is that of one process without any mistake, and not with any of
// the mistakes; writes them down (equality_table.h).
void expect_noticed(const std::string& layout_name, const Problem& problem,
                    const Layout& layout, const std::vector<Mistake>& mistakes);

// What is wrong around a segment.
struct SegmentMistake {
  // Done to what a forward is given.
  std::function<void(nn::TensorList& inputs)> inputs = {};
  double output = 1;    // factor of what a forward gives out
  double gradient = 1;  // factor of the gradients of that
  std::function<void(const nn::TensorList& parameters)> before_backward = {};
  // `inputs` are those of the last forward, as it was given them.
  std::function<void(const nn::TensorList& inputs,
                     const nn::TensorList& output_gradients,
                     const nn::TensorList& parameters)>
      after_backward = {};
};

// A change of the part that has the segment `name`.
using MakeMistake =
    std::function<SegmentMistake(const nn::Model& part, const collectives::Group& tp)>;
Changes around_segment(const std::string& name, MakeMistake make);
Changes around_segment(const std::string& name, SegmentMistake mistake);

// What is wrong around an attention kernel: what it is told of places, and factors of
// what goes into it and of the gradients that come out.
struct KernelMistake {
  std::function<void(nn::TokenPlaces&)> rotation = {};  // tells rotary positions
  std::function<void(nn::TokenPlaces&)> attention = {};
  double q = 1;  // in both directions
  double d_q = 1, d_k = 1, d_v = 1;
};
Changes around_kernel(const KernelMistake& mistake);

// `change` sees each collective of an axis of several ranks before it begins, with its
// number among those of axis and verb of the rank; what it returns, if anything, is
// done to the output at the end.
using AtEnd = std::function<void(const at::Tensor& out)>;
using ChangeCall =
    std::function<AtEnd(const collectives::Group& axis,
                        const collectives::Operation& operation, int64_t number)>;
Changes around_calls(ChangeCall change);

// The shape of the parameter that this rank has, and where it begins in the whole one.
const nn::ParameterSpec& find_parameter(const nn::Model& part, const std::string& name);

}  // namespace torchtitan::train::testing
