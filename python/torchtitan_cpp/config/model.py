"""Sections model, activation_checkpoint and compile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from torchtitan_cpp.config.constraints import Matching, Name, OneOf, Path, Ratio


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model is trained and where its assets lie."""

    name: Name = "llama3"
    """Name under which the model's TrainSpec is registered."""
    flavor: Name = "debugmodel"
    """Key of the model's arguments in its TrainSpec."""
    hf_assets_path: Path = "./tests/assets/tokenizer"
    """Folder with tokenizer files, config.json and, to start from them, weights."""
    tokenizer_path: Path | None = None
    """Deprecated name of hf_assets_path."""
    converters: list[str] = field(default_factory=list)
    """Conversions of the model in this order, e.g. quantize.linear.float8."""
    print_after_conversion: bool = False
    """Print the model once all converters are applied."""


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpoint:
    """Which activations are recomputed in the backward instead of being saved."""

    mode: Literal["selective", "full", "memory_budget", "none"] = "selective"
    """none: save all; full: recompute every block; selective, memory_budget: below."""
    selective_ac_option: Annotated[
        str, Matching(r"op|0*[1-9][0-9]*", 'a positive number as text, or "op"')
    ] = "2"
    """n: recompute every n-th block; "op": all but attention and every 2nd product."""
    per_op_sac_force_recompute_mm_shapes_by_fqns: list[str] = field(
        default_factory=lambda: ["moe.router.gate"]
    )
    """With "op": parts of names of linears; products of their shapes are recomputed."""
    early_stop: bool = False
    """Python layers: stop running again as soon as all needed activations are there."""
    memory_budget: Ratio = 0.5
    """With mode memory_budget: share of bytes that is kept; 0 is full, 1 is none."""
    visualize_memory_budget_pareto: bool = False
    """Rank 0 writes flops against bytes of every budget to memory_budget_pareto/."""
    offload: bool = False
    """What blocks save waits for their backward in host memory. Not v0.2.2's."""
    preserve_rng_state: bool = True
    """Draw the same random numbers when recomputing. Always so for C++ models."""
    determinism_check: Annotated[str, OneOf(("default", "none"))] = "default"
    """Python layers: compare shapes of recomputed activations with the first ones."""
    debug: bool = False
    """Python layers: note the operations of both runs for a failed check; slower."""


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Compilation of Python models."""

    enable: bool = False
    """Compile the components below. C++ models need none."""
    components: list[Annotated[str, OneOf(("model", "loss"))]] = field(
        default_factory=lambda: ["model", "loss"]
    )
    """What is compiled."""
    backend: Name = "inductor"
    """Name of the compiler backend."""
