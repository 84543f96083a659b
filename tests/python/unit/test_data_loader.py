import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from data_cases import ByteTokenizer, documents, loader, same, write_jsonl

from torchtitan_cpp.data import BadRecordsError


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", documents(60))


def test_prefetch_gives_the_same_batches(tmp_path, path):
    plain, ahead = loader(tmp_path, path=path), loader(tmp_path, path=path, workers=2)
    assert all(same(next(plain), next(ahead)) for _ in range(80))
    ahead.close()


def test_prefetch_works_while_nobody_asks(tmp_path, path):
    one = loader(tmp_path, path=path, workers=3)
    made = []
    make = one._source.next_batch
    one._source.next_batch = lambda: made.append(threading.current_thread()) or make()
    next(one)
    deadline = time.monotonic() + 10
    while len(made) < 1 + 3 * 2 + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + 3 * 2 + 1  # given out, in the queue, in the hand
    assert threading.main_thread() not in made
    one.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_state_is_that_of_what_was_given_out(tmp_path, path, workers):
    plain = loader(tmp_path, path=path, local=1, total=3)
    ahead = loader(tmp_path, path=path, local=1, total=3, workers=workers)
    for _ in range(20):
        assert ahead.state_dict() == plain.state_dict()
        assert same(next(ahead), next(plain))
        time.sleep(0.001)
    state = ahead.state_dict()
    following = [next(ahead) for _ in range(5)]
    ahead.load_state_dict(state)
    assert ahead.state_dict() == state
    assert all(same(next(ahead), batch) for batch in following)
    ahead.close()
    assert ahead.state_dict() != state


def test_iter_goes_on_where_the_loader_is(tmp_path, path):
    one, other = loader(tmp_path, path=path, workers=1), loader(tmp_path, path=path)
    for _ in range(3):
        assert same(next(iter(one)), next(other))
    one.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exhausted_loader_stays_so_until_iter(tmp_path, path, workers):
    one = loader(tmp_path, path=path, workers=workers, infinite=False)
    first = list(one)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(one)
    assert len(first) > 10
    assert all(map(same, first, one))
    one.close()
    with pytest.raises(StopIteration):
        next(one)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_batch_and_stays(tmp_path, workers):
    path = write_jsonl(tmp_path / "data.jsonl", documents(60))
    path.write_text(path.read_text() + "{\n")
    options = {"path": path, "max_bad_records": 0, "workers": workers}
    one = loader(tmp_path, **options)
    for _ in range(2):
        with pytest.raises(BadRecordsError, match="data.jsonl:61: broken JSON"):
            next(one)
    one.close()


def test_pin_memory_without_cuda_gives_plain_batches(tmp_path, path):
    batch, labels = next(loader(tmp_path, path=path, pin_memory=True))
    assert batch["input"].is_pinned() == labels.is_pinned()
    assert batch["input"].is_pinned() == torch.cuda.is_available()


def test_threads_end_with_the_loader(tmp_path, path):
    before = set(threading.enumerate())
    one = loader(tmp_path, path=path, workers=2)
    next(one)
    assert set(threading.enumerate()) - before
    del one
    assert not set(threading.enumerate()) - before


EXIT = """
import sys
from pathlib import Path
from data_cases import loader
one = loader(Path(sys.argv[1]), path=sys.argv[2], workers=2)
next(one)
if sys.argv[3] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 3)])
def test_the_interpreter_ends_at_once_with_an_open_loader(tmp_path, path, how, code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path), str(path), how],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, "")


def test_a_tokenizer_is_asked_for_bos_and_eos_only_by_keyword(tmp_path, path):
    class Recording(ByteTokenizer):
        def encode(self, *arguments, **keywords):
            assert len(arguments) == 1
            assert keywords == {"add_bos": True, "add_eos": True}
            return super().encode(*arguments, **keywords)

    next(loader(tmp_path, path=path, tokenizer=Recording()))
