#include "bindings/module.h"

PYBIND11_MODULE(_C, module) {
  using namespace torchtitan::bindings;
  module.doc() = "C++ core of torchtitan_cpp; one submodule per folder of csrc/.";
  bind_mesh(module.def_submodule("mesh"));
  bind_config(module.def_submodule("config"));
  bind_plan(module.def_submodule("plan"));
  bind_storage(module.def_submodule("storage"));
  bind_core(module.def_submodule("core"));
  bind_collectives(module.def_submodule("collectives"));
  bind_nn(module.def_submodule("nn"));
  bind_optim(module.def_submodule("optim"));
  bind_parallel(module.def_submodule("parallel"));
  auto models = module.def_submodule("models");
  bind_models_llama(models.def_submodule("llama"));
  bind_models_sleeping(models.def_submodule("sleeping"));
  bind_train(module.def_submodule("train"));
  bind_generation(module.def_submodule("generation"));
  bind_data(module.def_submodule("data"));
}
