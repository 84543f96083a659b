"""What ranks record of a step, and the picture of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from training_runs import merged, run

from torchtitan_cpp import _C, plan
from torchtitan_cpp.config import check_run, read_config
from torchtitan_cpp.custom_import import import_custom_code
from torchtitan_cpp.recorded_times import RecordedStep, read_times
from torchtitan_cpp.world import build_fake_world

pytestmark = pytest.mark.quick

FLAGS = (
    "--parallelism.pipeline-parallel-degree=2",
    "--parallelism.data-parallel-shard-degree=1",
    "--training.local-batch-size=4",
    "--profiling.enable-timeline",
    "--profiling.profile-freq=2",
)
MODELS = {
    "C++": ("--parallelism.pipeline-parallel-schedule=DualPipeV",),
    "Python": (
        "--experimental.custom-import=tiny_python_model",
        "--model.name=stackable",
        "--model.flavor=plain",
        "--parallelism.pipeline-parallel-schedule=InterleavedZeroBubble",
    ),
}


@pytest.fixture(scope="module", params=list(MODELS))
def job(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Flags of the model, and where the job has left its files."""
    flags = (*FLAGS, *MODELS[request.param])
    folder = tmp_path_factory.mktemp("recorded")
    finished = run(folder, *flags, ranks=2)
    assert f"{folder / 'timelines'}" in finished.output  # in the closing list
    return flags, folder / "timelines"


def planned(flags: tuple[str, ...], rank: int) -> list[str]:
    """The actions of a rank's step, made without the run."""
    fake = (*merged(*flags), "--comm.mode=fake_backend", "--job.dump-folder=nowhere")
    loaded = read_config(list(fake))
    import_custom_code(loaded)
    config = check_run(loaded, world_size=2)
    each = plan.make_plan(config, build_fake_world(config, rank))
    return [str(a) for a in _C.plan.with_stages(each.program, each.shape)]


def test_every_second_step_is_recorded_by_every_rank(job: Any) -> None:
    folder = job[1]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))
    assert files == [
        f"iteration_{step}/rank{rank}_timeline.json"
        for step in (2, 4)
        for rank in (0, 1)
    ]
    written = json.loads((folder / files[3]).read_text())
    assert (written["step"], written["rank"], written["num_ranks"]) == (4, 1, 2)
    assert len(written["segments"]) > 0 and len(written["groups"]) > 0


def test_actions_follow_each_other_in_the_order_of_the_program(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "2")
    flags, folder = job
    recorded = read_times(folder / "iteration_4")
    assert recorded.num_machines == 1
    for rank in (0, 1):
        program, spans = recorded.programs[rank], recorded.spans[rank]
        assert [str(action) for action in program] == planned(flags, rank)
        now = 0.0
        for action, (begin, end) in zip(program, spans, strict=True):
            assert now <= begin <= end
            is_start = (action.kind, action.group) in waited_for(program)
            now = begin if is_start else end
    assert min(spans[0][0] for spans in recorded.spans) == 0.0
    assert 0 < recorded.idle_share < 1


def waited_for(program: Any) -> set[tuple[str, int]]:
    return {(a.waits_for, a.group) for a in program if a.kind == "Wait"}


def test_messages_arrive_after_they_are_sent_by_the_clock_of_both_ranks(
    job: Any,
) -> None:
    recorded = read_times(job[1] / "iteration_2")
    sent, received = (of_messages(recorded, verb) for verb in ("Send", "Receive"))
    assert len(sent) > 4 and sent.keys() == received.keys()
    for message, (begin, _) in sent.items():
        assert begin <= received[message][1], message


def of_messages(recorded: RecordedStep, verb: str) -> dict[Any, tuple[float, float]]:
    """Times by what is sent, the stage that makes it, and the microbatch."""
    times = {}
    for program, spans in zip(recorded.programs, recorded.spans, strict=True):
        for action, span in zip(program, spans, strict=True):
            if not action.kind.startswith(verb):
                continue
            what = action.kind.removeprefix(verb)
            back = 1 if what == "Gradient" else -1
            stage = action.stage + (back if verb == "Receive" else 0)
            times[what, stage, action.microbatch] = span
    return times


def test_the_command_draws_all_work_of_all_ranks(
    job: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, picture = job[1] / "iteration_2", tmp_path / "step.svg"
    assert plan.main(["--recorded", str(folder), "--timeline", str(picture)]) == 0
    recorded = read_times(folder)
    printed = capsys.readouterr().out
    assert f"{recorded.idle_share:.1%} of all ranks' idle" in printed
    assert "step 2 on 2 ranks, measured" in printed
    svg = "{http://www.w3.org/2000/svg}"
    tree = ElementTree.fromstring(picture.read_text())
    drawn = [(each.text or "").partition(":")[0] for each in tree.iter(f"{svg}title")]
    shown = ("Forward", "Backward", "BackwardInput", "BackwardWeight", "Recompute")
    shown += ("ClipGradient", "OptimizerStep", "CountTokens")
    shown += ("SendActivation", "ReceiveActivation", "SendGradient", "ReceiveGradient")
    assert drawn == [
        str(action)
        for program in recorded.programs
        for action in program
        if action.kind in shown
    ]
    words = [each.text for each in tree.iter(f"{svg}text")]
    assert f"bubble {100 * recorded.idle_share:.1f} %" in str(words[1])


def test_a_run_that_ends_before_says_that_nothing_was_recorded(tmp_path: Path) -> None:
    flags = ("--profiling.enable-timeline", "--profiling.profile-freq=3")
    finished = run(tmp_path, *flags, "--training.steps=2")
    assert "No times were recorded" in finished.output
