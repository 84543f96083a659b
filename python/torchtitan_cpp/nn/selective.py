"""Which results of a Python layer are kept when it runs again by operation.

The list is torchtitan's: attention, sums over ranks, and every second matrix product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from torchtitan_cpp.nn.module import Weights
from torchtitan_cpp.nn.recomputation import Contexts

_PRODUCTS = ("aten.mm", "aten.linear")
_KEPT = (
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_attention_math",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "_c10d_functional.reduce_scatter_tensor",
    "torchtitan_cpp.reduce_scatter",
    "_c10d_functional.all_to_all_single",
    "aten.max",
    "torch_attn._varlen_attn",
)
_KEPT_HIGHER_ORDER = ("flex_attention", "inductor_compiled_code")


def _name(operation: Any) -> str:
    """ "aten.mm" for every overload."""
    packet = getattr(operation, "overloadpacket", operation)
    return str(packet).removeprefix("torch.ops.")


def recomputed_shapes(
    layer_name: str,
    layer: nn.Module,
    modules: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> frozenset[tuple[int, int]]:
    """(in, out) of each linear module with one of ``modules`` in its name.

    Args:
        shapes: of the parameters that this rank computes with, by name.
    Raises:
        ValueError: if another kind of module has such a name.
    """
    if misfit := misfit_of_names(layer_name, layer, modules):
        raise ValueError(
            "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns: "
            + misfit
        )
    found = set()
    for full, module in _named(layer_name, layer):
        if not any(part in full for part in modules):
            continue
        assert isinstance(module, nn.Linear)
        # A weight that two modules share has one name only.
        whole = (module.out_features, module.in_features)
        rows, columns = shapes.get(f"{full}.weight", whole)
        found.add((columns, rows))
    return frozenset(found)


def misfit_of_names(
    layer_name: str, layer: nn.Module, modules: Sequence[str]
) -> str | None:
    """Why ``modules`` are not all parts of names of linear modules only, if so.

    Args:
        layer: of a model in Python or C++; it may be on meta.
    """
    for full, module in _named(layer_name, layer):
        for part in modules:
            if part not in full or _is_linear(module):
                continue
            fits = [
                name.removeprefix(f"{layer_name}.")
                for name, each in _named(layer_name, layer)
                if _is_linear(each)
            ]
            near = [name for name in fits if part in name] or fits
            return (
                f"expected parts of names of linear modules, found one in '{full}', "
                f"which is none: {part!r}; linear are {', '.join(near) or 'none'}"
            )
    return None


def _named(layer_name: str, layer: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(layer.named_modules(prefix=layer_name))


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, Weights):
        return [each.dim() for each in module.parameters(recurse=False)] == [2]
    return isinstance(module, nn.Linear)


def contexts_by_operation(
    recomputed: frozenset[tuple[int, int]],
) -> Callable[[], Contexts]:
    """Contexts around the two runs of a layer; ``recomputed`` are shapes of weights."""

    def make() -> Contexts:
        counts: dict[bool, int] = defaultdict(int)

        def policy(
            context: SelectiveCheckpointContext, operation: Any, *args: Any, **kw: Any
        ) -> CheckpointPolicy:
            name = _name(operation)
            if name == "aten._to_copy" and _moves_to_host(args, kw):
                return CheckpointPolicy.MUST_SAVE
            if name in _PRODUCTS:
                weight = args[1].shape
                shape = tuple(weight) if name == "aten.mm" else tuple(weight)[::-1]
                if shape in recomputed:
                    return CheckpointPolicy.PREFER_RECOMPUTE
                counts[context.is_recompute] += 1
                if counts[context.is_recompute] % 2 == 0:
                    return CheckpointPolicy.PREFER_RECOMPUTE
                return CheckpointPolicy.MUST_SAVE
            kept = name in _KEPT or name in _KEPT_HIGHER_ORDER
            return (
                CheckpointPolicy.MUST_SAVE
                if kept
                else CheckpointPolicy.PREFER_RECOMPUTE
            )

        contexts: Contexts = create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
            policy
        )
        return contexts

    return make


def _moves_to_host(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    source = args[0]
    return (
        isinstance(source, torch.Tensor)
        and source.device.type == "cuda"
        and str(kwargs.get("device")) == "cpu"
    )
