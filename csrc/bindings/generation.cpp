#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "generation/decoder.h"
#include "generation/key_value_cache.h"
#include "generation/sampler.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_generation(py::module_ module) {
  using generation::CacheShape;
  using generation::Decoder;
  using generation::KeyValueCache;
  using generation::Sampler;
  using Released = py::call_guard<py::gil_scoped_release>;
  using TokenRows = std::vector<std::vector<int64_t>>;

  py::class_<KeyValueCache, std::shared_ptr<KeyValueCache>>(
      module, "KeyValueCache", "Keys and values of the tokens that a model has read.")
      .def(py::init([](int64_t layers, int64_t rows, int64_t kv_heads, int64_t max_len,
                       int64_t head_dim, at::ScalarType dtype, at::Device device) {
             return std::make_shared<KeyValueCache>(
                 CacheShape{.layers = layers,
                            .rows = rows,
                            .kv_heads = kv_heads,
                            .max_len = max_len,
                            .head_dim = head_dim},
                 at::TensorOptions().dtype(dtype).device(device));
           }),
           py::kw_only(), py::arg("layers"), py::arg("rows"), py::arg("kv_heads"),
           py::arg("max_len"), py::arg("head_dim"), py::arg("dtype"), py::arg("device"))
      .def_property_readonly("lengths", &KeyValueCache::lengths, "Tokens of each row.");
  module.def("cached_attention", &generation::cached_attention, py::arg("cache"),
             "Attention of a model that reads through the cache; forward only.");

  py::class_<Decoder>(module, "Decoder",
                      "A model that reads prompts and then token after token, and says "
                      "what may come next.")
      .def(py::init([](const nn::Model& model,
                       const std::vector<nn::TensorList>& parameters,
                       const std::shared_ptr<KeyValueCache>& cache,
                       const collectives::Group& tensor_axis,
                       std::optional<int64_t> document_end) {
             return std::make_unique<Decoder>(generation::DecoderOptions{
                 .model = model,
                 .parameters = parameters,
                 .cache = cache,
                 .axis = nn::TensorAxis(tensor_axis, nn::Overlap::kNone),
                 .document_end = document_end});
           }),
           py::arg("model"), py::kw_only(), py::arg("parameters"), py::arg("cache"),
           py::arg("tensor_axis"), py::arg("document_end"),
           "`model` ends in logits and attends through `cache`; `parameters` are lists "
           "of tensors by group. `document_end` is the token after which attention "
           "begins anew, for a model that reads document starts.")
      .def("read", &Decoder::read, py::arg("prompts"), Released(),
           "Forget everything and read prompts; logits [prompts, vocabulary] of the "
           "token after each.")
      .def("read_next", &Decoder::read_next, py::arg("tokens"), Released(),
           "Read one more token of each row; logits [rows, vocabulary].")
      .def("keep", &Decoder::keep, py::arg("rows"), Released(),
           "Go on with these rows only, which ascend.");

  py::class_<Sampler>(
      module, "Sampler",
      "Chooses tokens by their logits. Random choices depend on seed, "
      "prompt, how many equal prompts stand before it, and the number of "
      "the token.")
      .def(
          py::init([](const TokenRows& prompts, double temperature,
                      std::optional<int64_t> top_k, uint64_t seed) {
            return std::make_unique<Sampler>(
                generation::SamplingOptions{.temperature = temperature, .top_k = top_k},
                seed, prompts);
          }),
          py::arg("prompts"), py::kw_only(), py::arg("temperature"), py::arg("top_k"),
          py::arg("seed"),
          "With temperature 0 the most likely token; with `top_k` only tokens no less "
          "likely than the k-th.")
      .def("choose", &Sampler::choose, py::arg("logits"), py::kw_only(),
           py::arg("rows"), py::arg("index"), Released(),
           "For logits [R, vocabulary]: new token number `index` of prompt rows[r].");
}

}  // namespace torchtitan::bindings
