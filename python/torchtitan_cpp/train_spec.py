"""TrainSpec: everything about a model that the trainer can be given, in one place.

``register_train_spec`` makes a model of one's own trainable by name::

    register_train_spec("my_model", TrainSpec(model_cls=..., model_args={...}, ...))

and ``--model.name my_model`` then trains it with the same command, data parallelism,
checkpoints and metrics as the models in the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from torchtitan_cpp.models import FAMILIES
from torchtitan_cpp.models.protocol import BaseModelArgs
from torchtitan_cpp.tensor_parallel.plan import TensorParallelPlan


@dataclass
class TrainSpec:
    """The parts of a training, with torchtitan's field names."""

    model_cls: Callable[[Any], nn.Module]
    """Makes the model from its arguments; called under ``torch.device("meta")``."""
    model_args: Mapping[str, BaseModelArgs]
    """Arguments by flavor (``--model.flavor``)."""
    parallelize_fn: TensorParallelPlan | None
    """``tensor_parallel_plan({name: style})`` for tensor parallelism of a model written
    in Python, else None. The trainer applies every parallelism, never the model."""
    pipelining_fn: Callable[..., Any] | None
    """None."""
    build_optimizers_fn: Callable[..., Any]
    """``(model_parts, optimizer_config, parallel_dims, ft_manager) -> optimizers``."""
    build_lr_schedulers_fn: Callable[..., Any]
    """``(optimizers, lr_scheduler_config, training_steps) -> schedulers``."""
    build_dataloader_fn: Callable[..., Any]
    """``(dp_world_size, dp_rank, tokenizer, job_config) -> iterable of batches``."""
    build_tokenizer_fn: Callable[..., Any] | None
    """``(job_config) -> tokenizer``; None: the model reads no text."""
    build_loss_fn: Callable[..., Callable[..., Any]]
    """``(job_config) -> loss(prediction, labels)``, summed over valid tokens."""
    build_validator_fn: Callable[..., Any] | None = None
    """Builds what ``--validation.enable`` runs; None: no validation."""
    build_metrics_processor_fn: Callable[..., Any] | None = None
    """``(job_config, parallel_dims, model_args)``; None: the package's."""
    state_dict_adapter: Callable[..., Any] | None = None
    """``(model_args, hf_assets_path)``: names and layouts of Hugging Face weights."""


_registered: dict[str, TrainSpec] = {}


def register_train_spec(name: str, train_spec: TrainSpec) -> None:
    """Make ``--model.name name`` train ``train_spec``.

    Raises:
        ValueError: if the name is already registered, or if the spec brings its own
            parallelism.
    """
    _check_parallelism(name, train_spec)
    if name in _registered:
        raise ValueError(f"a TrainSpec named {name!r} is already registered")
    _registered[name] = train_spec


def _check_parallelism(name: str, train_spec: TrainSpec) -> None:
    plan = train_spec.parallelize_fn
    if not isinstance(plan, TensorParallelPlan | None):
        _refuse(
            name,
            "parallelize_fn",
            plan,
            "None or tensor_parallel_plan({name of module: style})",
            "the trainer shards every model by "
            "--parallelism.data_parallel_shard_degree and copies it by "
            "--parallelism.data_parallel_replicate_degree; a plan of "
            "torchtitan_cpp.tensor_parallel says how it is divided by "
            "--parallelism.tensor_parallel_degree",
        )
    if train_spec.pipelining_fn is not None:
        _refuse(
            name,
            "pipelining_fn",
            train_spec.pipelining_fn,
            "None",
            "the trainer will cut a model into stages itself",
        )


def _refuse(
    name: str, field: str, given: object, expected: str, replacement: str
) -> None:
    called = getattr(given, "__qualname__", type(given).__name__)
    raise ValueError(
        f"TrainSpec {name!r}: {field}: expected {expected}, found {called}; a function "
        f"that applies fully_shard or DTensor is not supported: {replacement}"
    )


def get_train_spec(name: str) -> TrainSpec:
    """The TrainSpec registered under ``name``, or that of a family in the package.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name in _registered:
        return _registered[name]
    if name in FAMILIES:
        spec = import_module(f"torchtitan_cpp.models.{name}").get_train_spec()
        assert isinstance(spec, TrainSpec)
        return spec
    known = sorted({*_registered, *FAMILIES})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"model.name: expected one of {', '.join(known)}, found {name!r}{hint}"
    )


def registered_names() -> list[str]:
    """Names given to ``register_train_spec`` in this process."""
    return sorted(_registered)
