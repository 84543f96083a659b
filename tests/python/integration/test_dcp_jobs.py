"""Jobs that save and resume in the format of torch's distributed checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from ports import reserved_port
from test_resume import (
    LAYOUTS,
    MANY_HEADS,
    SAVING,
    assert_same_checkpoint,
    checkpoint,
    layout_flags,
)
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_ranks import TorchRun, save_or_load
from training_runs import (
    assert_same_tensors,
    rank_environment,
    read_checkpoint,
    run,
    server,
)

DCP = "--checkpoint.format=dcp"


def read_by_torch(path: Path) -> dict[str, torch.Tensor]:
    """Weights and moments as torch's own reader finds them, under our names."""
    dcp_to_torch_save(path, path.with_suffix(".pt"))
    state = torch.load(path.with_suffix(".pt"), weights_only=False)
    tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)}
    for key, value in state["optimizer"].items():
        fqn, _, moment = key.removeprefix("state.").rpartition(".")
        if moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{moment}.{fqn}"] = value
    return tensors


def forget_manifest(path: Path) -> None:
    """As if another program had written the folder."""
    for name in ("manifest.json", "manifest.sha256"):
        os.remove(path / name)


def test_torch_reads_what_was_saved_and_a_resumed_run_goes_on_exactly(
    tmp_path: Path,
) -> None:
    ranks = LAYOUTS["pp_2_fsdp_2"][0]
    flags = (*SAVING, MANY_HEADS, *layout_flags("pp_2_fsdp_2"), "--training.steps=4")
    native = run(tmp_path / "native", *flags, ranks=ranks)
    flags += (DCP,)
    whole = run(tmp_path / "dcp", *flags, ranks=ranks)
    assert whole.metrics() == native.metrics()
    for step in (2, 4):
        assert_same_tensors(
            read_by_torch(checkpoint(whole.folder, step)),
            read_checkpoint(checkpoint(native.folder, step)),
        )
    shutil.rmtree(checkpoint(whole.folder, 4))
    resumed = run(whole.folder, *flags, ranks=ranks)
    assert "training goes on after step 2" in resumed.output
    # The manifest beside the folder of DCP holds data position and generators.
    assert resumed.metrics() == native.metrics()
    assert_same_tensors(
        read_by_torch(checkpoint(whole.folder, 4)),
        read_checkpoint(checkpoint(native.folder, 4)),
    )


def test_every_layout_goes_on_from_the_dcp_folder_of_another(tmp_path: Path) -> None:
    """A chain; each loads what the one before saved and saves it again."""
    chain = ["fsdp_2_tp_2", "cp_2", "pp_2", "ddp_2", "fsdp_3"]
    flags = (*SAVING, MANY_HEADS, DCP, "--training.steps=2")
    first = tmp_path / "start"
    run(first, *flags, *layout_flags(chain[0]), ranks=4)
    source = checkpoint(first, 2)
    expected = read_by_torch(source)
    for number, layout in enumerate(chain[1:]):
        folder = tmp_path / f"{number}_{layout}"
        shutil.copytree(source, folder / "checkpoint" / "step-2")
        if number % 2:
            forget_manifest(folder / "checkpoint" / "step-2")
        resaved = run(
            *(folder, *flags, *layout_flags(layout)),
            ranks=LAYOUTS[layout][0],
            trainer="resaving",
        )
        assert "training goes on after step 2" in resaved.output
        assert ("the data starts at its beginning" in resaved.output) == bool(
            number % 2
        )
        source = folder / "resaved" / "step-2"
        assert_same_tensors(read_by_torch(source), expected)


def torch_job(*arguments: object) -> None:
    """Two ranks of torch_ranks.save_or_load."""
    with reserved_port() as port:
        processes = [
            server().Process(
                target=save_or_load,
                args=(rank_environment(rank, 2, str(port)), *arguments),
            )
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def test_fsdp2_and_a_pipeline_here_continue_each_other(tmp_path: Path) -> None:
    flags = (*SAVING, MANY_HEADS, DCP, *layout_flags("pp_2_fsdp_2"))
    seed = run(tmp_path / "seed", *SAVING, MANY_HEADS, "--training.steps=2")
    saved = read_checkpoint(checkpoint(seed.folder, 2))
    weights = {n: t for n, t in saved.items() if not n.startswith("optimizer.")}
    alone = TorchRun(weights)
    alone.train(3)
    expected = alone.tensors()

    theirs = tmp_path / "ours" / "checkpoint" / "step-3"
    torch_job(weights, 3, str(theirs), None)
    ours = run(
        *(tmp_path / "ours", *flags, "--training.steps=4"),
        ranks=4,
        trainer="resaving",
    )
    assert f"Loaded {theirs}; training goes on after step 3" in ours.output
    (line,) = ours.metrics()
    assert line["step"] == 4 and line["n_tokens_seen"] == 1000 + 12 * 16
    resaved = ours.folder / "resaved" / "step-3"
    assert_same_tensors(read_by_torch(resaved), expected)

    out = tmp_path / "out.pt"
    torch_job(weights, 3, str(resaved), str(out))
    assert_same_tensors(torch.load(out), expected)


def test_a_converted_run_goes_on_exactly(tmp_path: Path) -> None:
    from torchtitan_cpp.checkpoint.convert import main

    flags = (*SAVING, *layout_flags("fsdp_2"), "--training.steps=4")
    whole = run(tmp_path / "whole", *flags, ranks=2)
    step = str(checkpoint(whole.folder, 2))
    dcp, native = tmp_path / "dcp", tmp_path / "native" / "checkpoint"
    assert main(["to-dcp", step, str(dcp), "--optimizer.lr=1e-2"]) == 0
    assert_same_tensors(read_by_torch(dcp / "step-2"), read_checkpoint(Path(step)))
    assert main(["to-native", str(dcp / "step-2"), str(native)]) == 0
    resumed = run(native.parent, *flags, ranks=2)
    assert resumed.metrics() == whole.metrics()[2:]
    assert_same_checkpoint(native / "step-4", checkpoint(whole.folder, 4))
