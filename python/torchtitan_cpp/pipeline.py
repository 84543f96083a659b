"""How a model and a step's microbatches are divided for pipeline parallelism.

Rules and defaults are torchtitan's: a stage is a list of module names, the first has
the embedding, the last norm and output, the layers between are spread evenly with
embedding and output counted as so many layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.config.problems import did_you_mean
from torchtitan_cpp.errors import Explained
from torchtitan_cpp.nn import CppModule

_P = "parallelism."


class Misfit(Explained, ValueError):
    """A value of the configuration that pipeline parallelism cannot take."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, kw_only=True)
class ModuleNames:
    """Children of a model in the order in which a batch meets them."""

    inputs: tuple[str, ...]
    """Before the layers, such as ``tok_embeddings``."""
    layers: tuple[str, ...]
    """``layers.0`` and so on."""
    outputs: tuple[str, ...]
    """After the layers, such as ``norm`` and ``output``."""
    one_output: bool
    """Whether those after the layers are one segment."""

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.inputs, *self.layers, *self.outputs)


def modules_of(model: nn.Module) -> ModuleNames:
    """The names by which stages are made of a model with a child ``layers``."""
    names = list(dict(model.named_children()))
    fused = isinstance(model, CppModule)
    if "layers" not in names:
        return ModuleNames(inputs=tuple(names), layers=(), outputs=(), one_output=fused)
    at = names.index("layers")
    layers = dict(model.get_submodule("layers").named_children())
    return ModuleNames(
        inputs=tuple(names[:at]),
        layers=tuple(f"layers.{key}" for key in layers),
        outputs=tuple(names[at + 1 :]),
        one_output=fused,
    )


EQUAL_STAGE = _C.plan.StageCost(
    forward_seconds=1.0,
    backward_seconds=2.0,
    backward_input_seconds=1.0,
    backward_weight_seconds=1.0,
)
"""Forward and each half of backward take equally long."""

NOT_OVERLAPPED = (
    "its pairs of forward and backward run one after the other: a stage in Python is "
    "one call"
)
"""Said of a schedule with ``overlaps`` where the model is written in Python."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What is done where and when."""

    schedule: _C.plan.Schedule
    """Of one round."""
    evaluation: _C.plan.Schedule
    """Forwards of a validation batch."""
    rounds: int
    """Times that the schedule runs in a step."""
    modules: tuple[tuple[str, ...], ...]
    """Names of the modules of each stage, in order."""
    microbatch_size: int
    """Rows of a microbatch."""

    @property
    def rank_of_stage(self) -> list[int]:
        return list(self.schedule.rank_of_stage)

    @property
    def num_microbatches(self) -> int:
        """Of a step."""
        return self.schedule.num_microbatches * self.rounds

    def simulate(self) -> _C.plan.PipelineSimulation:
        """A round with equal stages and messages that take no time."""
        return _C.plan.simulate_pipeline(
            _C.plan.add_transfers(self.schedule),
            [EQUAL_STAGE] * self.schedule.num_stages,
        )


def plan_pipeline(
    job_config: Any, names: ModuleNames, *, accumulation: int = 1
) -> Pipeline:
    """The pipeline of a run with ``pipeline_parallel_degree`` above 1.

    Args:
        names: of the model's modules.
        accumulation: local batches of a step.
    Raises:
        Misfit: names the field, what was expected and found.
    """
    p, training = job_config.parallelism, job_config.training
    size = p.pipeline_parallel_microbatch_size
    if training.local_batch_size % size:
        raise Misfit(
            _P + "pipeline_parallel_microbatch_size",
            f"expected a divisor of training.local_batch_size = "
            f"{training.local_batch_size}, found {size}",
        )
    microbatches = training.local_batch_size // size
    num_layers = len(names.layers)
    schedule, bounded = _schedule(p, num_layers, microbatches)
    modules = _modules(p, names, len(schedule.rank_of_stage))
    rounds = accumulation
    if bounded:
        # One longer schedule has fewer idle ranks than several short ones.
        rounds = 1
        schedule, _ = _schedule(p, num_layers, microbatches * accumulation)
    return Pipeline(
        schedule=schedule,
        evaluation=_evaluation(job_config, schedule, num_layers),
        rounds=rounds,
        modules=modules,
        microbatch_size=size,
    )


def _schedule(
    p: Any, num_layers: int, num_microbatches: int
) -> tuple[_C.plan.Schedule, bool]:
    """And whether rounds may be merged."""
    if p.pipeline_parallel_schedule_csv:
        return _from_file(p, num_microbatches), False
    field, name = _P + "pipeline_parallel_schedule", p.pipeline_parallel_schedule
    try:
        facts = _C.plan.find_schedule(name)
    except ValueError as error:
        hint = did_you_mean(name, [each.name for each in _C.plan.all_schedules()])
        raise Misfit(field, f"{error}; {hint}" if hint else str(error)) from None
    stages_per_rank = _stages_per_rank(p, facts, num_layers)
    stages = p.pipeline_parallel_degree * stages_per_rank
    if p.module_fqns_per_model_part is None:  # before a schedule of any size is made
        _layers_each(stages, num_layers, *_weights(p))
    try:
        made = _C.plan.make_schedule(
            facts.name,
            num_ranks=p.pipeline_parallel_degree,
            stages_per_rank=stages_per_rank,
            num_microbatches=num_microbatches,
        )
    except ValueError as error:
        raise Misfit(field, str(error)) from None
    return made, facts.bounded_memory


def _from_file(p: Any, num_microbatches: int) -> _C.plan.Schedule:
    field = _P + "pipeline_parallel_schedule_csv"
    path = Path(p.pipeline_parallel_schedule_csv)
    try:
        schedule = _C.plan.parse_schedule_csv(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise Misfit(field, f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise Misfit(field, f"{path}: {error}") from None
    ranks = schedule.num_ranks
    if ranks != p.pipeline_parallel_degree:
        raise Misfit(
            field,
            f"expected a row for each of pipeline_parallel_degree = "
            f"{p.pipeline_parallel_degree} ranks, found {ranks} in {path}",
        )
    if p.pipeline_parallel_layers_per_stage is not None:
        raise Misfit(
            _P + "pipeline_parallel_layers_per_stage",
            f"has no effect with {field}, whose file says how many stages there are; "
            "leave it out",
        )
    if schedule.num_microbatches != num_microbatches:
        raise Misfit(
            field,
            f"{path} has {schedule.num_microbatches} microbatches, but "
            f"training.local_batch_size / pipeline_parallel_microbatch_size is "
            f"{num_microbatches}; training.local_batch_size = "
            f"{schedule.num_microbatches * p.pipeline_parallel_microbatch_size} fits",
        )
    return schedule


def _stages_per_rank(p: Any, facts: Any, num_layers: int) -> int:
    degree = p.pipeline_parallel_degree
    if p.module_fqns_per_model_part is not None:
        parts = len(p.module_fqns_per_model_part)
        if parts == 0 or parts % degree:
            raise Misfit(
                _P + "module_fqns_per_model_part",
                f"expected a multiple of pipeline_parallel_degree = {degree} parts, "
                f"found {parts}",
            )
        if p.pipeline_parallel_layers_per_stage is not None:
            raise Misfit(
                _P + "pipeline_parallel_layers_per_stage",
                "has no effect with module_fqns_per_model_part, which says what each "
                "stage has; leave it out",
            )
        return _fitting(facts, parts // degree, "module_fqns_per_model_part", parts)
    per_stage = p.pipeline_parallel_layers_per_stage
    if per_stage is None:
        return facts.stages_per_rank or (2 if facts.multi_stage else 1)
    effective = num_layers + _weights(p)[0] + _weights(p)[1]
    stages = -(-effective // per_stage)
    if stages % degree:
        fits = [
            each
            for each in range(1, effective + 1)
            if -(-effective // each) % degree == 0
            and _takes(facts, -(-effective // each) // degree)
        ]
        raise Misfit(
            _P + "pipeline_parallel_layers_per_stage",
            f"{effective} layers (embedding and output counted in) by {per_stage} a "
            f"stage are {stages} stages, not a multiple of pipeline_parallel_degree = "
            f"{degree}; expected one of {', '.join(map(str, fits)) or 'none'}",
        )
    return _fitting(
        facts, stages // degree, "pipeline_parallel_layers_per_stage", per_stage
    )


def _fitting(facts: Any, per_rank: int, field: str, found: Any) -> int:
    if not _takes(facts, per_rank):
        expected = (facts.stages_per_rank or "at least 2") if facts.multi_stage else 1
        others = [x.name for x in _C.plan.all_schedules() if _takes(x, per_rank)]
        raise Misfit(
            _P + field,
            f"the schedule {facts.name} takes {expected} stages a rank, but {found} "
            f"makes {per_rank}, which {', '.join(others) or 'none'} would take",
        )
    return per_rank


def _takes(facts: Any, per_rank: int) -> bool:
    if not facts.multi_stage:
        return per_rank == 1
    return per_rank == facts.stages_per_rank or (
        facts.stages_per_rank == 0 and per_rank >= 2
    )


def _weights(p: Any) -> tuple[int, int]:
    """Layers that embedding and output count for."""
    return (
        p.pipeline_parallel_first_stage_less_layers,
        p.pipeline_parallel_last_stage_less_layers,
    )


def _modules(
    p: Any, names: ModuleNames, num_stages: int
) -> tuple[tuple[str, ...], ...]:
    if p.module_fqns_per_model_part is None:
        return split_modules(num_stages, names, *_weights(p))
    field = _P + "module_fqns_per_model_part"
    parts = tuple(tuple(part) for part in p.module_fqns_per_model_part)
    if len(parts) != num_stages:
        raise Misfit(field, f"expected {num_stages} parts, found {len(parts)}")
    found = [name for part in parts for name in part]
    if found != list(names.all):
        unknown = [name for name in found if name not in names.all]
        missing = [name for name in names.all if name not in found]
        what = "a module is named twice or not in the order of the model"
        if unknown:
            hint = did_you_mean(unknown[0], names.all)
            what = f"unknown: {unknown[0]}" + (f", {hint}" if hint else "")
        elif missing:
            what = f"missing: {', '.join(missing)}"
        raise Misfit(
            field,
            f"expected every module once, in the order of the model "
            f"({', '.join((*names.inputs, '...', *names.outputs))}); {what}",
        )
    if names.one_output and not set(names.outputs) <= set(parts[-1]):
        together = " and ".join(names.outputs)
        raise Misfit(field, f"expected {together} together in the last part")
    if not all(parts):
        raise Misfit(field, f"part {parts.index(())} is empty")
    return parts


def _layers_each(
    num_stages: int, num_layers: int, input_weight: int, output_weight: int
) -> tuple[int, int]:
    """Of the smallest stage, and how many stages have one more."""
    effective = num_layers + input_weight + output_weight
    if num_stages > effective:
        raise Misfit(
            _P + "pipeline_parallel_degree",
            f"expected at most {effective} stages for {num_layers} layers with "
            f"embedding and output counted as {input_weight} and {output_weight}, "
            f"found {num_stages}",
        )
    return divmod(effective, num_stages)


def split_modules(
    num_stages: int,
    names: ModuleNames,
    input_weight: int = 1,
    output_weight: int = 1,
) -> tuple[tuple[str, ...], ...]:
    """Names of each stage's modules, as even as they can be; the first have more.

    Args:
        input_weight: layers that the embedding counts for.
        output_weight: layers that norm and output count for.
    Raises:
        Misfit: for a stage that would have nothing, or by a weight less than that.
    """
    if num_stages == 1:
        return (names.all,)
    num_layers = len(names.layers)
    least, more = _layers_each(num_stages, num_layers, input_weight, output_weight)
    for name, weight in (("first", input_weight), ("last", output_weight)):
        if weight > least:  # which falls with it
            rest = num_layers + input_weight + output_weight - weight
            fits = rest // (num_stages - 1)
            raise Misfit(
                _P + f"pipeline_parallel_{name}_stage_less_layers",
                f"expected at most {fits}, the layers of the smallest of "
                f"{num_stages} stages, found {weight}",
            )
    stages = []
    following = iter(names.layers)
    for stage in range(num_stages):
        count = least + (stage < more)
        first, last = stage == 0, stage == num_stages - 1
        count -= input_weight * first + output_weight * last
        layers = [next(following) for _ in range(count)]
        stages.append(
            (
                *(names.inputs if first else ()),
                *layers,
                *(names.outputs if last else ()),
            )
        )
    if () in stages:
        raise Misfit(
            _P + "pipeline_parallel_degree",
            f"stage {stages.index(())} of {num_stages} would have none of the modules "
            f"{', '.join(names.all)}; say by "
            "module_fqns_per_model_part which ones each stage has",
        )
    return tuple(stages)


def _evaluation(
    job_config: Any, training: _C.plan.Schedule, num_layers: int
) -> _C.plan.Schedule:
    p, validation = job_config.parallelism, job_config.validation
    if not validation.enable:
        return training.forward_only()
    rows, size = validation.local_batch_size, p.pipeline_parallel_microbatch_size
    field = "validation.local_batch_size"
    if p.pipeline_parallel_schedule_csv:
        if rows % training.num_microbatches:
            raise Misfit(
                field,
                f"expected a multiple of the {training.num_microbatches} microbatches "
                f"of the schedule's file, found {rows}",
            )
        return training.forward_only()
    if rows % size:
        raise Misfit(
            field,
            f"expected a multiple of parallelism.pipeline_parallel_microbatch_size = "
            f"{size}, found {rows}",
        )
    return _schedule(p, num_layers, rows // size)[0].forward_only()
