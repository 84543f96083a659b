import json

import pytest
import torch
from data_cases import (
    ByteTokenizer,
    documents,
    loader,
    packed,
    rows_of_step,
    same,
    write_jsonl,
)

from torchtitan_cpp.data import build_validation_dataloader, merge_data_states
from torchtitan_cpp.errors import SettingError

TEXTS = documents(40)
TOKENS = packed(TEXTS)
LAYOUTS = [(1, 12), (1, 4), (2, 6), (2, 2), (3, 1), (4, 3), (4, 1), (12, 1)]


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", TEXTS)


def test_sample_k_covers_its_tokens_and_shares_the_boundary_token(tmp_path, path):
    one = loader(tmp_path, path=path, local=3, seq_len=16)
    for step in range(len(TOKENS) // 48 + 10):
        batch, labels = next(one)
        for row in range(3):
            first = (step * 3 + row) * 16
            expected = [TOKENS[(first + i) % len(TOKENS)] for i in range(17)]
            assert batch["input"][row].tolist() == expected[:-1]
            assert labels[row].tolist() == expected[1:]
    assert batch["input"].dtype == labels.dtype == torch.int64


def test_global_rows_do_not_depend_on_ranks_or_accumulation(tmp_path, path):
    def steps(ranks, local):
        loaders = [
            loader(tmp_path, path=path, ranks=ranks, rank=r, local=local, total=12)
            for r in range(ranks)
        ]
        return torch.stack([rows_of_step(loaders) for _ in range(12)])

    expected = steps(1, 12)
    assert len(expected) * 12 * 8 > len(TOKENS), "the data should be re-looped"
    for ranks, local in LAYOUTS:
        assert torch.equal(steps(ranks, local), expected), (ranks, local)


def test_resume_at_every_step_gives_the_same_rows(tmp_path, path):
    whole = loader(tmp_path, path=path)
    batches = [next(whole) for _ in range(30)]
    for stop in range(30):
        before = loader(tmp_path, path=path)
        for _ in range(stop):
            next(before)
        state = json.loads(json.dumps(before.state_dict()))
        after = loader(tmp_path, path=path)
        after.load_state_dict(state)
        assert all(same(next(after), batch) for batch in batches[stop:])


def test_resume_in_another_layout_goes_on_with_the_same_rows(tmp_path, path):
    def loaders(ranks, local):
        return [
            loader(tmp_path, path=path, ranks=ranks, rank=r, local=local, total=12)
            for r in range(ranks)
        ]

    for (ranks, local), (new_ranks, new_local) in zip(
        LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1], strict=True
    ):
        first = loaders(ranks, local)
        rows_of_step(first)
        state = merge_data_states([one.state_dict() for one in first])
        second = loaders(new_ranks, new_local)
        for one in second:
            one.load_state_dict(state)
        assert torch.equal(rows_of_step(second), rows_of_step(first))


def test_a_state_from_within_a_step_needs_the_same_accumulation(tmp_path, path):
    first = loader(tmp_path, path=path, local=2, total=8)
    next(first)
    same_layout = loader(tmp_path, path=path, local=2, total=8)
    same_layout.load_state_dict(first.state_dict())
    assert same(next(same_layout), next(first))
    other = loader(tmp_path, path=path, local=4, total=8)
    with pytest.raises(ValueError, match="within a step of 4 microbatches.* has 2 now"):
        other.load_state_dict(first.state_dict())


def test_resume_with_another_global_batch_size_repeats_and_skips_nothing(
    tmp_path, path
):
    first = loader(tmp_path, path=path, local=6)
    for _ in range(3):
        next(first)
    second = loader(tmp_path, path=path, local=4)
    second.load_state_dict(first.state_dict())
    batch, _ = next(second)
    assert batch["input"][0].tolist() == TOKENS[18 * 8 : 19 * 8]


def test_resume_with_another_seq_len_goes_on_at_the_next_sample(tmp_path, path, caplog):
    first = loader(tmp_path, path=path, local=1, seq_len=8)
    for _ in range(3):
        next(first)
    second = loader(tmp_path, path=path, local=1, seq_len=16)
    second.load_state_dict(first.state_dict())
    assert "going on at token 32 instead of 24" in caplog.text
    assert next(second)[0]["input"][0].tolist() == TOKENS[32:48]
    third = loader(tmp_path, path=path, local=1, seq_len=4)
    third.load_state_dict(first.state_dict())
    assert caplog.messages[-1] == "seq_len changed from 8 to 4: going on at token 24"


def test_a_finite_loader_gives_every_sample_once_and_ends_on_all_ranks(tmp_path, path):
    num_samples = (len(TOKENS) - 1) // 8
    assert num_samples % 12, "the last global batch should need ignored rows"
    for ranks, local in LAYOUTS:
        seen, lengths = {}, set()
        for rank in range(ranks):
            one = loader(
                tmp_path,
                path=path,
                ranks=ranks,
                rank=rank,
                local=local,
                total=12,
                infinite=False,
            )
            batches = list(one)
            lengths.add(len(batches))
            with pytest.raises(StopIteration):
                next(one)
            per_step = one.rows.num_microbatches
            for number, (batch, labels) in enumerate(batches):
                step, microbatch = divmod(number, per_step)
                first = step * 12 + one.rows.first_row(microbatch)
                for row in range(local):
                    if (labels[row] != -100).any():
                        assert (labels[row] != -100).all()
                        seen[first + row] = batch["input"][row].tolist()
                    else:
                        assert not batch["input"][row].any()
        assert len(lengths) == 1
        assert seen == {k: TOKENS[k * 8 : k * 8 + 8] for k in range(num_samples)}


def test_a_validation_loader_begins_anew_with_every_iter(tmp_path, path):
    from data_cases import job

    for workers in (0, 1):
        config = job(tmp_path, path=path, workers=workers)
        one = build_validation_dataloader(1, 0, ByteTokenizer(), config)
        first, second = list(one), list(one)
        assert len(first) == len(second) > 3
        iterator = iter(one)
        next(iterator)
        assert all(map(same, first, one)), "a broken-off pass does not count"
        assert all(map(same, first, second))
        one.close()


def test_re_looping_is_said(tmp_path, path, caplog):
    one = loader(tmp_path, path=path, local=8, seq_len=16)
    for _ in range(2 * len(TOKENS) // 128):
        next(one)
    assert caplog.text.count("Dataset local is being re-looped") == 1


def test_too_little_data_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "tiny.jsonl", ["abc"])
    with pytest.raises(ValueError, match="has 5 tokens, fewer than one sample .* = 9"):
        next(loader(tmp_path, path=path, infinite=False))
    batch, _ = next(loader(tmp_path, path=path))
    assert batch["input"][0].tolist() == (packed(["abc"]) * 2)[:8]
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="dataset local has no usable document"):
        next(loader(tmp_path, path=empty))


def test_a_state_of_other_data_or_another_tokenizer_is_refused(tmp_path, path):
    state = loader(tmp_path, path=path).state_dict()
    other = write_jsonl(tmp_path / "other.jsonl", documents(41))
    with pytest.raises(SettingError, match="files or their order changed"):
        loader(tmp_path, path=other).load_state_dict(state)
    tokenizer = ByteTokenizer("2")
    with pytest.raises(
        SettingError, match="another tokenizer .*--model.hf_assets_path"
    ):
        loader(tmp_path, path=path, tokenizer=tokenizer).load_state_dict(state)
    with pytest.raises(
        SettingError, match="of kind 'stream', but dataset local is inde"
    ):
        loader(tmp_path, path=path).load_state_dict({**state, "kind": "stream"})


def test_a_copied_dataset_is_the_same_dataset(tmp_path, path):
    state = loader(tmp_path, path=path).state_dict()
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    loader(tmp_path, path=copy).load_state_dict(state)


def test_batch_sizes_that_do_not_fit_are_refused(tmp_path, path):
    with pytest.raises(ValueError, match="global_batch_size 12 is not a multiple of"):
        loader(tmp_path, path=path, local=4, ranks=2, total=12)


def test_a_stray_id_is_one_error_at_its_sample(tmp_path, path):
    one = loader(tmp_path, path=path, local=2, seq_len=16)
    one.check_ids_below(ord("z") + 2)
    position = TOKENS.index(ord("z") + 2)
    message = (
        f"sample {(position - 1) // 16}, token {position} of the dataset has id 124"
    )
    with pytest.raises(ValueError, match=message + ", expected 0 <= id < 124"):
        for _ in range(len(TOKENS)):
            next(one)


@pytest.mark.parametrize("stray", [-1, 258, 2**31, 2**40])
def test_a_stray_id_from_the_tokenizer_names_the_document(tmp_path, path, stray):
    class Astray(ByteTokenizer):
        def encode(self, text, **options):
            ids = super().encode(text, **options)
            return [*ids, stray] if text.startswith("<3>") else ids

    with pytest.raises(ValueError, match=f"data.jsonl:4: token .* has id {stray}, but"):
        next(loader(tmp_path, path=path, tokenizer=Astray()))
