"""Meshes and layouts from Python, compared with what PyTorch's DTensor does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor import _utils as dtensor_utils
from torch.distributed.tensor.placement_types import _StridedShard

from torchtitan_cpp import _C

PLACEMENTS = {
    "Replicate": Replicate,
    "Shard": Shard,
    "_StridedShard": lambda dim, factor: _StridedShard(dim, split_factor=factor),
}


def make_mesh(**degrees: int) -> Any:
    dims = {
        "dp_replicate": 1,
        "dp_shard": -1,
        "cp": 1,
        "tp": 1,
        "pp": 1,
        "ep": 1,
        "etp": 1,
        "world_size": 1,
    }
    return _C.mesh.Mesh(_C.mesh.ParallelDims(**(dims | degrees)))


def test_mesh_orders_ranks_and_infers_the_shard_degree():
    mesh = make_mesh(dp_replicate=2, tp=2, world_size=8)
    assert mesh.dims.dp_shard == 2
    assert mesh.ranks("tp", 5) == [4, 5]
    assert mesh.ranks("dp_shard", 5) == [5, 7]
    assert mesh.ranks("dp_replicate", 5) == [1, 5]
    assert mesh.coordinates(5)["loss"] == 2


def test_degrees_that_do_not_fit_are_one_value_error():
    with pytest.raises(ValueError, match="(?s)tensor_parallel_degree.*WORLD_SIZE"):
        make_mesh(tp=0, world_size=0)


@pytest.mark.parametrize(
    ("shape", "tp_dim"),
    [
        ((8, 6), 0),
        ((14, 3), 0),
        ((2, 2), 0),
        ((8, 6), 1),
        ((257, 5), 1),
        ((2, 2), 1),
        ((257, 3), None),
        ((2, 2), None),
    ],
)
def test_boxes_are_those_of_dtensor(shape: tuple[int, int], tp_dim: int | None):
    """FSDP on dim 0 after tensor parallelism, as fully_shard lays parameters out."""
    axes = [("dp_replicate", 2), ("fsdp", 3), ("tp", 2)]
    splits = [_C.mesh.Split(axis="fsdp", parts=3, dim=0)]
    replications = [("dp_replicate", 2)]
    if tp_dim is None:
        replications.append(("tp", 2))
    else:
        splits.insert(0, _C.mesh.Split(axis="tp", parts=2, dim=tp_dim))
    layout = _C.mesh.Layout(shape, splits=splits, replications=replications)
    placements = [
        eval(text, {"__builtins__": {}}, PLACEMENTS)  # DTensor's own notation
        for text in layout.to_placements(axes)
    ]
    for coordinate in itertools.product(*(range(size) for _, size in axes)):
        size, offset = dtensor_utils._compute_local_shape_and_global_offset(
            shape, [size for _, size in axes], list(coordinate), placements
        )
        names = [axis for axis, _ in axes]
        box = layout.box(dict(zip(names, coordinate, strict=True)))
        assert tuple(box.size) == tuple(size)
        if box.num_elements():  # DTensor gives empty shards an offset of its own
            assert tuple(box.offset) == tuple(offset)


def test_strided_shards_of_unequal_pieces_are_refused():
    """There DTensor's shards differ from those of fully_shard after TP: no words."""
    layout = _C.mesh.Layout(
        (7, 5),
        splits=[
            _C.mesh.Split(axis="tp", parts=2, dim=0),
            _C.mesh.Split(axis="fsdp", parts=3, dim=0),
        ],
    )
    with pytest.raises(ValueError, match="not equal"):
        layout.to_placements([("fsdp", 3), ("tp", 2)])


def test_relayout_moves_every_element():
    whole = torch.arange(35).view(7, 5)
    source = _C.mesh.Layout((7, 5), splits=[_C.mesh.Split(axis="fsdp", parts=3, dim=0)])
    target = _C.mesh.Layout(
        (7, 5),
        splits=[
            _C.mesh.Split(axis="tp", parts=2, dim=1),
            _C.mesh.Split(axis="fsdp", parts=2, dim=0),
        ],
    )

    def cut(box: Any, tensor: torch.Tensor = whole) -> torch.Tensor:
        for dim, (offset, size) in enumerate(zip(box.offset, box.size, strict=True)):
            tensor = tensor.narrow(dim, offset, size)
        return tensor

    filled = torch.zeros_like(whole)
    for copy in _C.mesh.relayout(source, target):
        inside_source = source.box(source.writers()[copy.source])
        assert cut(copy.box).numel() <= inside_source.num_elements()
        cut(copy.box, filled).add_(cut(copy.box))
    assert torch.equal(filled, whole)


def test_layouts_that_do_not_fit_are_value_errors():
    with pytest.raises(ValueError, match="cuts dim 2 of a tensor of 2 dims"):
        _C.mesh.Layout((4, 4), splits=[_C.mesh.Split(axis="tp", parts=2, dim=2)])
    with pytest.raises(ValueError, match="lack axis 'tp'"):
        _C.mesh.Layout((4,), splits=[_C.mesh.Split(axis="tp", parts=2, dim=0)]).box({})
