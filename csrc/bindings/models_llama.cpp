#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "models/llama/model.h"
#include "models/llama/plan.h"

#include "bindings/module.h"

namespace torchtitan::bindings {

void bind_models_llama(py::module_ module) {
  using models::llama::Args;
  using models::llama::Head;
  py::class_<ops::RopeScaling>(module, "RopeScaling",
                               "Frequency scaling of Llama 3.1's rotary embedding.")
      .def(py::init([](double factor, double low, double high, int64_t original) {
             return ops::RopeScaling{factor, low, high, original};
           }),
           py::kw_only(), py::arg("factor"), py::arg("low_freq_factor"),
           py::arg("high_freq_factor"), py::arg("original_context"));
  py::class_<Args>(module, "Args", "Sizes of a Llama 3 model.")
      .def(
          py::init([](int64_t dim, int64_t n_layers, int64_t n_heads,
                      int64_t n_kv_heads, int64_t vocab_size, int64_t hidden_dim,
                      double norm_eps, double rope_theta,
                      std::optional<ops::RopeScaling> rope_scaling, int64_t max_seq_len,
                      bool depth_init, bool tied_embeddings, bool document_masks) {
            const Args args{.dim = dim,
                            .n_layers = n_layers,
                            .n_heads = n_heads,
                            .n_kv_heads = n_kv_heads,
                            .vocab_size = vocab_size,
                            .hidden_dim = hidden_dim,
                            .norm_eps = norm_eps,
                            .rope_theta = rope_theta,
                            .rope_scaling = rope_scaling,
                            .max_seq_len = max_seq_len,
                            .depth_init = depth_init,
                            .tied_embeddings = tied_embeddings,
                            .document_masks = document_masks};
            args.validate();
            return args;
          }),
          py::kw_only(), py::arg("dim"), py::arg("n_layers"), py::arg("n_heads"),
          py::arg("n_kv_heads"), py::arg("vocab_size"), py::arg("hidden_dim"),
          py::arg("norm_eps"), py::arg("rope_theta"), py::arg("rope_scaling"),
          py::arg("max_seq_len"), py::arg("depth_init"), py::arg("tied_embeddings"),
          py::arg("document_masks"))
      .def("num_params", &Args::num_params, "Parameters stored, tied ones once.")
      .def("flops_per_token", &Args::flops_per_token, py::arg("seq_len"),
           "Training flops for one token in sequences of seq_len tokens.");
  module.def(
      "tensor_parallel_misfit", &models::llama::tensor_parallel_misfit, py::arg("args"),
      py::arg("ranks"),
      "Why the model cannot be divided among `ranks`, with the numbers that it can "
      "be divided among; empty if it can.");
  module.def(
      "build",
      [](const Args& args, const std::string& head, at::Device device,
         at::ScalarType dtype, const collectives::Group& tensor_axis,
         bool overlap_exchanges, bool loss_parallel,
         const std::shared_ptr<nn::AttentionKernel>& attention) {
        TORCH_CHECK_VALUE(head == "loss" || head == "logits",
                          "head: expected 'loss' or 'logits', found '", head, "'");
        return models::llama::build(
            args, {.head = head == "loss" ? Head::kLoss : Head::kLogits,
                   .device = device,
                   .dtype = dtype,
                   .axis = nn::TensorAxis(tensor_axis, overlap_exchanges
                                                           ? nn::Overlap::kRing
                                                           : nn::Overlap::kNone),
                   .loss_parallel = loss_parallel,
                   .attention = attention});
      },
      py::arg("args"), py::kw_only(), py::arg("head"), py::arg("device"),
      py::arg("dtype"), py::arg("tensor_axis"), py::arg("overlap_exchanges"),
      py::arg("loss_parallel"), py::arg("attention"),
      "Segments and parameter groups of Llama 3. `head` is 'loss' (sum of cross-entropy) "
      "or 'logits'; `dtype` is that of the rotary arithmetic. The ranks of `tensor_axis` "
      "divide each segment's work, with `loss_parallel` also that of the loss, with "
      "`overlap_exchanges` exchanging while they multiply. `attention` knows which tokens "
      "of each sequence are here.");
}

}  // namespace torchtitan::bindings
