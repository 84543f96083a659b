"""Float8 weights with a scale for each block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_ranks import Grid, is_box_of, results, run_ranks, state_of
from checkpoint_runs import manager
from safetensors.torch import save_file
from test_llama3_state_dict_adapter import ARGS, weights
from torch.distributed.checkpoint.quantized_hf_storage import (
    QuantizedHuggingFaceStorageReader,
)

from torchtitan_cpp.checkpoint import HuggingFaceFolder
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.models.llama3.state_dict_adapter import Llama3StateDictAdapter

FLOAT8 = torch.float8_e4m3fn


def quantize(
    weight: torch.Tensor, block: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float8 numbers, scales, and the float32 numbers that they stand for."""
    counts = [-(-size // by) for size, by in zip(weight.shape, block, strict=True)]
    scales, numbers = torch.empty(counts), torch.empty(weight.shape, dtype=FLOAT8)
    back = torch.empty_like(weight)
    for i in range(counts[0]):
        for j in range(counts[1]):
            at = (
                slice(i * block[0], (i + 1) * block[0]),
                slice(j * block[1], (j + 1) * block[1]),
            )
            scales[i, j] = weight[at].abs().max() / 448
            numbers[at] = (weight[at] / scales[i, j]).to(FLOAT8)
            back[at] = numbers[at].float() * scales[i, j]
    return numbers, scales, back


def save_quantized(
    folder: Path, block: tuple[int, int]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A Llama whose projections are float8: what is stored, and what it means here."""
    adapter = Llama3StateDictAdapter(ARGS, None)
    stored, meant = {}, {}
    for name, tensor in adapter.to_hf(weights(ARGS)).items():
        stored[name] = meant[name] = tensor
        if "_proj" in name:
            numbers, scales, back = quantize(tensor, block)
            stored[name], meant[name] = numbers, back
            stored[name + "_scale_inv"] = scales
    write(folder, stored)
    if block != (128, 128):
        config = {"quantization_config": {"weight_block_size": list(block)}}
        (folder / "config.json").write_text(json.dumps(config))
    return stored, adapter.from_hf(meant)


def write(folder: Path, stored: dict[str, torch.Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(stored, folder / "model.safetensors")


def load(folder: Path, source: Path, grid: Grid, ranks: Any, *, flag: bool) -> Any:
    settings = Checkpoint(
        enable=True,
        initial_load_in_hf=True,
        initial_load_path=str(source),
        initial_load_in_hf_quantized=flag,
    )
    state = state_of(weights(ARGS), grid, ranks.rank, zeros=True)
    adapter = Llama3StateDictAdapter(ARGS, None)
    manager(folder, settings, adapter=adapter, ranks=ranks).load(state)
    return state


@pytest.mark.parametrize("block", [(128, 128), (16, 16), (7, 5)])
@pytest.mark.parametrize(
    "grid", [Grid(), Grid(rows=5), Grid(rows=2, columns=3)], ids=str
)
def test_every_rank_dequantizes_its_boxes(
    grid: Grid, block: tuple[int, int], tmp_path: Path
) -> None:
    _, meant = save_quantized(tmp_path / "theirs", block)

    def act(ranks: Any) -> None:
        state = load(tmp_path, tmp_path / "theirs", grid, ranks, flag=True)
        assert all(is_box_of(e, meant[e.name]) for e in state.tensors)

    results(run_ranks(grid.world_size, act))


def test_blocks_of_128_are_found_inside_of_a_large_weight(tmp_path: Path) -> None:
    weight = torch.randn(300, 270, generator=torch.manual_seed(0))
    numbers, scales, back = quantize(weight, (128, 128))
    assert scales.shape == (3, 3)
    write(tmp_path / "m", {"w": numbers, "w_scale_inv": scales.bfloat16().float()})
    folder = HuggingFaceFolder(str(tmp_path / "m"))
    assert list(folder) == ["w"] and folder.dtype("w") == torch.float32
    exact = (
        quantize(weight, (128, 128))[0].float()
        * scales.bfloat16().float()[
            torch.arange(300)[:, None] // 128, torch.arange(270) // 128
        ]
    )
    for offset, size in (
        ((0, 0), (300, 270)),
        ((100, 120), (60, 20)),
        ((128, 256), (128, 14)),
        ((127, 129), (130, 1)),
        ((5, 5), (0, 3)),
    ):
        box = folder.read_box("w", offset=offset, size=size)
        rows = slice(offset[0], offset[0] + size[0])
        assert torch.equal(box, exact[rows, offset[1] : offset[1] + size[1]])


Q = "model.layers.1.self_attn.q_proj.weight"
SCALES = Q + "_scale_inv"
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({SCALES: None}, f"{Q} is float8 without {SCALES}"),
    "no weight": ({Q: torch.zeros(48, 48)}, f"{SCALES} has no float8 weight {Q}"),
    "shape": (
        {SCALES: torch.ones(1, 3)},
        r"expected \[3, 3\] floating-point scales for the blocks of 16 x 16 of "
        r"\[48, 48\], found \[1, 3\]",
    ),
    "dtype": ({SCALES: torch.ones(3, 3, dtype=torch.int32)}, "found .* torch.int32"),
    "not finite": (
        {SCALES: torch.full((3, 3), float("nan"))},
        f"{SCALES}: a scale is negative or not finite",
    ),
    "negative": ({SCALES: -torch.ones(3, 3)}, f"{SCALES}: a scale is negative"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_scales_are_one_clear_error_on_all_ranks(
    mistake: str, tmp_path: Path
) -> None:
    changes, message = MISTAKES[mistake]
    stored, _ = save_quantized(tmp_path / "theirs", (16, 16))
    stored = {n: t for n, t in (stored | changes).items() if t is not None}
    write(tmp_path / "theirs", stored)

    def act(ranks: Any) -> None:
        load(tmp_path, tmp_path / "theirs", Grid(rows=2), ranks, flag=True)

    outcomes = run_ranks(2, act)
    for outcome in outcomes:
        with pytest.raises(ValueError, match=message):
            raise outcome
    assert str(outcomes[0]) == str(outcomes[1])


def test_the_flag_says_whether_weights_are_quantized(tmp_path: Path) -> None:
    save_quantized(tmp_path / "small", (16, 16))
    plain = Llama3StateDictAdapter(ARGS, None).to_hf(weights(ARGS))
    write(tmp_path / "plain", plain)
    ranks: Any = run_ranks(1, lambda ranks: ranks)[0]
    with pytest.raises(ValueError, match="set checkpoint.initial_load_in_hf_quantized"):
        load(tmp_path, tmp_path / "small", Grid(), ranks, flag=False)
    with pytest.raises(ValueError, match="leave out checkpoint.initial_load_in_hf_q"):
        load(tmp_path, tmp_path / "plain", Grid(), ranks, flag=True)


@pytest.mark.parametrize("block", [[128], [0, 128], "128", [1.5, 2]])
def test_block_sizes_of_no_sense_are_refused(block: Any, tmp_path: Path) -> None:
    save_quantized(tmp_path / "m", (128, 128))
    config = {"quantization_config": {"weight_block_size": block}}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weight_block_size: expected two sizes"):
        HuggingFaceFolder(str(tmp_path / "m"))


def test_torch_reads_the_same_numbers(tmp_path: Path) -> None:
    weight = torch.randn(300, 270, generator=torch.manual_seed(1))
    numbers, scales, back = quantize(weight, (128, 128))
    folder = tmp_path / "m"
    stored = {"a.weight": numbers, "a.weight_scale_inv": scales}
    write(folder, stored)
    index = {"weight_map": dict.fromkeys(stored, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = {"a.weight": torch.zeros(300, 270)}
    reader = QuantizedHuggingFaceStorageReader(path=str(folder))
    dcp.load(theirs, storage_reader=reader, no_dist=True)
    ours = HuggingFaceFolder(str(folder)).read("a.weight")
    assert torch.equal(ours, back)
    assert torch.allclose(ours, theirs["a.weight"], rtol=1e-6, atol=0)
