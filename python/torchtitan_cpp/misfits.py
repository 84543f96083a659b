"""What a run's configuration must fit besides itself: registered names and the model.

Found before any process group exists.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from torchtitan_cpp.activation_checkpoint import (
    has_budget_of_compiler,
    is_by_operation,
)
from torchtitan_cpp.compilation import compile_misfits
from torchtitan_cpp.config import JobConfig, Loaded
from torchtitan_cpp.data import DATASETS
from torchtitan_cpp.evaluation import validation_misfits
from torchtitan_cpp.input_data import data_misfits
from torchtitan_cpp.logging import logger
from torchtitan_cpp.models import FAMILIES
from torchtitan_cpp.models.protocol import BaseModelArgs
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.nn.on_meta import on_meta
from torchtitan_cpp.nn.selective import misfit_of_names
from torchtitan_cpp.nn.stages import held_by_all, shared_between, without_parameters
from torchtitan_cpp.optim import OPTIMIZER_NAMES, build_optimizers
from torchtitan_cpp.pipeline import Misfit, modules_of, plan_pipeline
from torchtitan_cpp.tensor_parallel.misfits import tensor_misfits
from torchtitan_cpp.train_spec import get_train_spec, registered_names


def known_names(loaded: Loaded) -> dict[str, list[str]]:
    """Names of models, flavors and datasets by the field that may have them."""
    known = {
        "model.name": sorted({*FAMILIES, *registered_names()}),
        "training.dataset": sorted(DATASETS),
    }
    if loaded.config.validation.enable:
        known["validation.dataset"] = sorted(DATASETS)
    name = loaded.config.model.name
    if name in known["model.name"]:
        spec = get_train_spec(name)
        known["model.flavor"] = list(spec.model_args)
        if spec.build_optimizers_fn is build_optimizers:
            known["optimizer.name"] = list(OPTIMIZER_NAMES)
    return known


def model_misfits(loaded: Loaded) -> dict[str, str]:
    """Values that the chosen model cannot take, by field."""
    config = loaded.config
    if config.model.name not in {*FAMILIES, *registered_names()}:
        return {}
    spec = get_train_spec(config.model.name)
    model_args = spec.model_args.get(config.model.flavor)
    if model_args is None:
        return {}
    if not hasattr(model_args, "find_misfits"):  # a class of one's own
        misfits = BaseModelArgs.find_misfits(model_args, config)
    else:
        misfits = model_args.find_misfits(config)
    misfits |= data_misfits(spec, config) | validation_misfits(spec, config)
    if misfits:
        return misfits
    asks_model = (
        config.parallelism.pipeline_parallel_degree > 1
        or config.parallelism.tensor_parallel_degree > 1
        or config.compile.enable
        or config.activation_checkpoint.mode == "memory_budget"
        or is_by_operation(config)
    )
    if not asks_model:
        return {}
    args = _args_of_run(model_args, config)
    with on_meta():
        model = spec.model_cls(args)
    if not isinstance(model, CppModule):
        misfits = _misfits_of_python(config)
        misfits |= tensor_misfits(model, spec.parallelize_fn, config, args)
    elif spec.parallelize_fn is not None:
        misfits["model.name"] = (
            f"{config.model.name} has TrainSpec.parallelize_fn, which is for models "
            "written in Python; C++ ones have a plan of their own, so set it to None"
        )
    if is_by_operation(config):
        misfits |= _misfits_by_operation(config, model)
    if config.parallelism.pipeline_parallel_degree > 1:
        misfits |= _pipeline_misfits(config, model)
    return misfits


def _args_of_run(model_args: Any, config: JobConfig) -> Any:
    """As the model is built from; what there is to say of them is said then."""
    args = copy.deepcopy(model_args)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        args.update_from_config(config)
    finally:
        logger.disabled = was_disabled
    return args


def _misfits_of_python(config: JobConfig) -> dict[str, str]:
    misfits = compile_misfits(config)
    is_budget = config.activation_checkpoint.mode == "memory_budget"
    if is_budget and not has_budget_of_compiler(config):
        misfits["activation_checkpoint.mode"] = (
            "memory_budget needs compile.enable, with model in compile.components, for "
            "models written in Python, whose operations only a compiler knows; without "
            'it none, full and selective (a number or "op") fit'
        )
    return misfits


def _misfits_by_operation(config: JobConfig, model: nn.Module) -> dict[str, str]:
    field = "per_op_sac_force_recompute_mm_shapes_by_fqns"
    modules = getattr(config.activation_checkpoint, field)
    for name in modules_of(model).layers:
        layer = model.get_submodule(name)
        if misfit := misfit_of_names(name, layer, modules):
            return {f"activation_checkpoint.{field}": misfit}
    return {}


def _pipeline_misfits(config: JobConfig, model: nn.Module) -> dict[str, str]:
    size = config.parallelism.pipeline_parallel_microbatch_size
    if config.training.local_batch_size % size:
        return {}  # told already: that needs no model
    try:
        pipeline = plan_pipeline(config, modules_of(model))
    except Misfit as misfit:
        return {misfit.field: misfit.message}
    if isinstance(model, CppModule):
        return {}
    ranks: list[set[str]] = [set() for _ in range(pipeline.schedule.num_ranks)]
    for rank, names in zip(pipeline.rank_of_stage, pipeline.modules, strict=True):
        ranks[rank] |= set(names)
    if shared := shared_between(model, pipeline.modules):
        return {
            "parallelism.pipeline_parallel_degree": (
                f"modules of different stages share the parameter {shared}; not "
                "supported yet for models written in Python"
            )
        }
    if (idle := without_parameters(model, ranks)) is not None:
        return {
            "parallelism.pipeline_parallel_degree": (
                f"pipeline rank {idle} would have no parameter to train, only "
                f"{', '.join(sorted(ranks[idle]))}; give it another module by "
                "module_fqns_per_model_part"
            )
        }
    if held := held_by_all(model, pipeline.modules):
        return {
            "parallelism.pipeline_parallel_degree": (
                f"no module of a stage holds the parameter {held}, so that every stage "
                "would train its own; put it into a child of the model that has a "
                "forward, or into a layer"
            )
        }
    return {}
