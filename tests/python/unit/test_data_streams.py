import json

import datasets
import pytest
import torch
from data_cases import (
    ByteTokenizer,
    documents,
    job,
    loader,
    packed,
    rows_of_step,
    same,
)

from torchtitan_cpp.data import (
    DATASETS,
    BadRecordsError,
    build_validation_dataloader,
    merge_data_states,
    register_dataset,
)

TEXTS = documents(50)


def hub_like(num_shards):
    samples = datasets.Dataset.from_dict({"text": TEXTS})
    return lambda path: samples.to_iterable_dataset(num_shards=num_shards)


class Restartable:
    """An iterable with a state of its own; counts what it reads."""

    num_read = 0

    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < len(TEXTS):
            self.next += 1
            Restartable.num_read += 1
            yield {"text": TEXTS[self.next - 1]}
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Plain:
    def __iter__(self):
        return iter([{"text": text} for text in TEXTS])


LOADERS = {
    "hub": hub_like(num_shards=5),
    "hub_in_files": hub_like(num_shards=8),
    "restartable": lambda path: Restartable(),
    "plain": lambda path: Plain(),
}


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr("torchtitan_cpp.data.registry.DATASETS", dict(DATASETS))

    def register(load, name="stream"):
        register_dataset(name, path="nowhere", loader=load)

    return register


def stream_loaders(folder, ranks=1, local=4, **options):
    options = {"total": 4, "dataset": "stream", **options}
    return [
        loader(folder, ranks=ranks, rank=rank, local=local, **options)
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("kind", ["hub", "restartable", "plain"])
def test_row_j_packs_every_gth_document_from_j_on(tmp_path, register, kind):
    register(LOADERS[kind])
    loaders = stream_loaders(tmp_path)
    rows = [packed(TEXTS[j::4]) * 3 for j in range(4)]
    for step in range(2 * len(rows[0]) // 24):
        found = rows_of_step(loaders)
        for j in range(4):
            assert found[j].tolist() == rows[j][step * 8 : step * 8 + 9]


@pytest.mark.parametrize("kind", LOADERS)
def test_rows_do_not_depend_on_ranks_accumulation_or_threads(tmp_path, register, kind):
    register(LOADERS[kind])

    def steps(**options):
        loaders = stream_loaders(tmp_path, **options)
        return torch.stack([rows_of_step(loaders) for _ in range(30)])

    expected = steps()
    for ranks, local, workers in [
        (1, 2, 0),
        (2, 2, 0),
        (2, 1, 2),
        (4, 1, 0),
        (1, 4, 3),
    ]:
        assert torch.equal(steps(ranks=ranks, local=local, workers=workers), expected)


@pytest.mark.parametrize("kind", LOADERS)
def test_resume_at_every_step_gives_the_same_rows(tmp_path, register, kind):
    register(LOADERS[kind])
    whole = stream_loaders(tmp_path)
    steps = [rows_of_step(whole) for _ in range(50)]
    before = stream_loaders(tmp_path, ranks=2, local=1)
    for stop in range(0, 45, 2):
        states = [json.loads(json.dumps(one.state_dict())) for one in before]
        after = stream_loaders(tmp_path, ranks=4, local=1)
        for one in after:
            one.load_state_dict(merge_data_states(states))
        for number in range(stop, stop + 3):
            assert torch.equal(rows_of_step(after), steps[number]), (stop, number)
        for number in (stop, stop + 1):
            assert torch.equal(rows_of_step(before), steps[number])


def test_an_iterable_with_a_state_is_not_read_again_on_resume(tmp_path, register):
    register(LOADERS["restartable"])
    first = stream_loaders(tmp_path, local=1, total=1)
    for _ in range(40):
        rows_of_step(first)
    state = first[0].state_dict()
    assert len(json.dumps(state)) < 1000
    Restartable.num_read = 0
    second = stream_loaders(tmp_path, local=1, total=1)
    second[0].load_state_dict(state)
    rows_of_step(second)
    assert Restartable.num_read <= 3


def test_another_global_batch_size_restarts_the_rows_and_says_so(
    tmp_path, register, caplog
):
    register(LOADERS["hub"])
    first = stream_loaders(tmp_path)
    rows_of_step(first)
    second = stream_loaders(tmp_path, total=8)
    fresh = stream_loaders(tmp_path, total=8)
    second[0].load_state_dict(first[0].state_dict())
    assert (
        "global_batch_size changed from 4 to 8: the rows of the stream" in caplog.text
    )
    assert torch.equal(rows_of_step(second), rows_of_step(fresh))


def test_the_state_of_one_rank_alone_is_refused(tmp_path, register):
    register(LOADERS["plain"])
    first, _ = stream_loaders(tmp_path, ranks=2, local=2)
    (alone,) = stream_loaders(tmp_path)
    with pytest.raises(ValueError, match=r"rows \[2, 3\] .* are missing; merge the"):
        alone.load_state_dict(first.state_dict())


def test_states_of_different_steps_do_not_merge(tmp_path, register):
    register(LOADERS["plain"])
    first, second = stream_loaders(tmp_path, ranks=2, local=1)
    next(first)
    with pytest.raises(ValueError, match="ranks differ in microbatch: 1 and 0"):
        merge_data_states([first.state_dict(), second.state_dict()])
    with pytest.raises(ValueError, match="at least one state"):
        merge_data_states([])


def test_a_finite_stream_gives_each_row_to_its_end(tmp_path, register):
    register(LOADERS["hub"])
    for local, workers in [(4, 0), (2, 2)]:
        (one,) = stream_loaders(tmp_path, local=local, infinite=False, workers=workers)
        rows = {j: [] for j in range(4)}
        batches = list(one)
        for number, (batch, labels) in enumerate(batches):
            for i in range(local):
                if (labels[i] != -100).all():
                    row = number % (4 // local) * local + i
                    rows[row] += batch["input"][i].tolist()
                else:
                    assert not (labels[i] != -100).any()
        for j in range(4):
            tokens = packed(TEXTS[j::4])
            assert rows[j] == tokens[: (len(tokens) - 1) // 8 * 8]
        valid = [(labels != -100).any() for _, labels in batches]
        assert any(valid[-(4 // local) :]), "the last step should have a sample"
        with pytest.raises(StopIteration):
            next(one)


def test_validation_of_a_stream_begins_anew(tmp_path, register):
    register(LOADERS["hub_in_files"])
    config = job(tmp_path, dataset="stream", local=4)
    one = build_validation_dataloader(1, 0, ByteTokenizer(), config)
    first, second = list(one), list(one)
    assert len(first) == len(second) > 5
    assert all(map(same, first, second))


def test_bad_samples_are_skipped_once_an_epoch_up_to_the_limit(tmp_path, register):
    samples = [{"text": text} for text in TEXTS[:8]]
    bad = [{}, {"text": 1}, {"text": ""}, {"text": "\0"}, None]
    register(lambda path: Samples(samples + bad))
    options = {"total": 1, "local": 1, "max_bad_records": 5}
    (one,) = stream_loaders(tmp_path, **options)
    clean = packed(TEXTS[:8]) * 3
    for step in range(2 * len(clean) // 24):
        assert next(one)[0]["input"][0].tolist() == clean[step * 8 : step * 8 + 8]
    (one,) = stream_loaders(tmp_path, **{**options, "max_bad_records": 4})
    with pytest.raises(BadRecordsError, match="stream:document 12: TypeError"):
        for _ in range(100):
            next(one)


class Samples:
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def test_a_row_without_documents_is_an_error(tmp_path, register):
    register(lambda path: Samples([{"text": "a"}] * 3))
    with pytest.raises(ValueError, match="row 3 of 4 has no usable document"):
        rows_of_step(stream_loaders(tmp_path))


def test_a_stray_id_is_one_error_at_its_batch(tmp_path, register):
    register(LOADERS["plain"])
    (one,) = stream_loaders(tmp_path)
    one.check_ids_below(60)
    with pytest.raises(
        ValueError, match="batch: input row 0, position 1 has token id 62"
    ):
        next(one)
