"""Weights in float8 with a scale for each block, as DeepSeek publishes them.

Beside ``x.weight [R, C]`` (float8_e4m3fn) lies ``x.weight_scale_inv [ceil(R / r),
ceil(C / c)]`` (floating point), by which each block of r x c numbers is multiplied.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from torchtitan_cpp.errors import UnusablePathError

SCALE_SUFFIX = "_scale_inv"
FLOAT8 = torch.float8_e4m3fn
_DEFAULT_BLOCK = (128, 128)

Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def read_block_size(folder: str) -> tuple[int, int]:
    """As ``config.json`` says, or 128 x 128.

    Raises:
        ValueError: it says something that is no pair of sizes.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return _DEFAULT_BLOCK
    with open(path, encoding="utf-8") as file:
        try:
            config = json.load(file)
        except ValueError as error:
            raise UnusablePathError(f"{path}: {error}") from None
    found = config.get("quantization_config") if isinstance(config, dict) else None
    quantization = found if isinstance(found, dict) else {}
    block = quantization.get("weight_block_size", list(_DEFAULT_BLOCK))
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(size, int) and size > 0 for size in block)
    ):
        raise UnusablePathError(
            f"{path}: quantization_config.weight_block_size: expected two sizes, "
            f"found {block!r}"
        )
    return block[0], block[1]


def pair_scales(
    folder: str, entries: Entries, block: tuple[int, int]
) -> dict[str, str]:
    """Weight to its scales; empty where nothing is quantized.

    Raises:
        ValueError: naming all weights without scales, scales without a weight, and
            scales of another shape or no floating-point dtype.
    """
    problems: list[str] = []
    pairs: dict[str, str] = {}
    for name, (dtype, shape) in entries.items():
        if name.endswith(SCALE_SUFFIX):
            weight = name.removesuffix(SCALE_SUFFIX)
            if weight not in entries or entries[weight][0] != FLOAT8:
                problems.append(f"{name} has no float8 weight {weight}")
            continue
        if dtype != FLOAT8:
            continue
        scales = name + SCALE_SUFFIX
        if scales not in entries:
            problems.append(f"{name} is float8 without {scales}")
            continue
        if len(shape) != 2:
            problems.append(f"{name}: expected two dims in float8, found {shape}")
            continue
        expected = tuple(-(-size // by) for size, by in zip(shape, block, strict=True))
        scale_dtype, found = entries[scales]
        if found != expected or not scale_dtype.is_floating_point:
            problems.append(
                f"{scales}: expected {list(expected)} floating-point scales for the "
                f"blocks of {block[0]} x {block[1]} of {list(shape)}, found "
                f"{list(found)} of {scale_dtype}"
            )
        pairs[name] = scales
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UnusablePathError(f"{folder}: {'; '.join(problems[:3])}{more}")
    return pairs


def dequantize(
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    offset: Sequence[int],
    block: tuple[int, int],
) -> torch.Tensor:
    """Float32 numbers of a box of a weight.

    Args:
        weight: the box, ``[r, c]``, float8.
        scales: those of the blocks that the box touches.
        offset: of the box in the whole weight.
    Raises:
        ValueError: for a scale that is negative or no finite number.
    """
    scales = scales.float()
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError("a scale is negative or not finite")
    out = weight.float()
    columns = (torch.arange(weight.shape[1]) + offset[1]) // block[1]
    columns -= offset[1] // block[1]
    first = offset[0] // block[0]
    edges = [
        max(row * block[0] - offset[0], 0) for row in range(first, first + len(scales))
    ]
    for index, (begin, end) in enumerate(pairwise([*edges, weight.shape[0]])):
        out[begin:end] *= scales[index, columns]
    return out


def touched_blocks(
    offset: Sequence[int], size: Sequence[int], block: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Offset and size of the box of scales for a box, not empty, of their weight."""
    low = [o // by for o, by in zip(offset, block, strict=True)]
    high = [
        math.ceil((o + s) / by) for o, s, by in zip(offset, size, block, strict=True)
    ]
    return low, [h - start for start, h in zip(low, high, strict=True)]
