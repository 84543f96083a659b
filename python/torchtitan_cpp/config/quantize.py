"""Section quantize: what the converters of model.converters do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torchtitan_cpp.config.constraints import Name


@dataclass(frozen=True, kw_only=True)
class Float8Linear:
    """Converter quantize.linear.float8."""

    enable_fsdp_float8_all_gather: bool = False
    """Gather sharded weights in float8; for tensorwise scaling."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """Compute the scales of all gathered weights at once after the step."""
    recipe_name: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None = None
    """Granularity of the scales. None: tensorwise, with the fields above."""
    filter_fqns: list[str] = field(default_factory=list)
    """Linears whose name contains one of these stay as they are."""
    emulate: bool = False
    """Compute in ordinary precision on quantized values, for tests."""


@dataclass(frozen=True, kw_only=True)
class MXLinear:
    """Converter quantize.linear.mx."""

    mxfp8_dim1_cast_kernel_choice: Literal["triton", "cuda", "torch"] = "triton"
    """Kernel that quantizes along the first dimension."""
    recipe_name: Name = "mxfp8_cublas"
    """Name of the recipe."""
    filter_fqns: list[str] = field(default_factory=lambda: ["output"])
    """Linears whose name contains one of these stay as they are."""


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """Converters of linears."""

    float8: Float8Linear = field(default_factory=Float8Linear)
    """Float8 with scales per tensor or row."""
    mx: MXLinear = field(default_factory=MXLinear)
    """Float8 with scales per block of 32 (OCP MX)."""


@dataclass(frozen=True, kw_only=True)
class Float8GroupedMM:
    """Converter quantize.grouped_mm.float8."""

    fqns: list[str] | str = field(default_factory=list)
    """Expert modules whose name contains one of these are converted."""


@dataclass(frozen=True, kw_only=True)
class MXGroupedMM:
    """Converter quantize.grouped_mm.mx."""

    recipe_name: Literal["mxfp8"] = "mxfp8"
    """Name of the recipe."""
    fqns: list[str] | str = field(default_factory=list)
    """Expert modules whose name contains one of these are converted."""


@dataclass(frozen=True, kw_only=True)
class QuantizedGroupedMM:
    """Converters of the grouped products of experts."""

    float8: Float8GroupedMM = field(default_factory=Float8GroupedMM)
    """Float8 with scales per row."""
    mx: MXGroupedMM = field(default_factory=MXGroupedMM)
    """Float8 with scales per block of 32 (OCP MX)."""


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantized products."""

    linear: QuantizedLinear = field(default_factory=QuantizedLinear)
    """Linears."""
    grouped_mm: QuantizedGroupedMM = field(default_factory=QuantizedGroupedMM)
    """Grouped products of experts."""
