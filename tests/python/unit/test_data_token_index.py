import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data_cases import ByteTokenizer, documents, packed, write_jsonl

from torchtitan_cpp import _C
from torchtitan_cpp.data import open_text_files, token_index
from torchtitan_cpp.data.token_index import CacheError, TokenIndex
from torchtitan_cpp.errors import needs_traceback

TEXTS = documents(200)
TOKENS = packed(TEXTS)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(token_index, "FIRST_SHARD_BYTES", 64)
    monkeypatch.setattr(token_index, "LARGEST_SHARD_BYTES", 512)
    return write_jsonl(tmp_path / "data.jsonl", TEXTS)


def open_index(path, tokenizer=None):
    return TokenIndex(
        "data",
        open_text_files(path),
        tokenizer or ByteTokenizer(),
        cache_folder=path.parent / "cache",
        max_bad_records=0,
    )


def all_tokens(index):
    index.require(10**12)
    tokens, labels = index.gather(
        first_sample=0,
        num_rows=1,
        seq_len=index.num_tokens - 1,
        vocab_size=258,
        at_end=_C.data.AtEnd.STOP,
    )
    return [*tokens[0].tolist(), labels[0, -1].item()]


def test_all_shards_together_are_the_packed_documents(path):
    index = open_index(path)
    assert all_tokens(index) == TOKENS
    assert len(list(index.folder.glob("tokens-*.bin"))) > 8
    index.close()


def test_a_start_tokenizes_only_the_beginning(path):
    tokenizer = ByteTokenizer()
    index = open_index(path, tokenizer)
    index.require(10)
    time.sleep(0.2)
    assert 0 < tokenizer.num_encoded < 30
    assert not index.complete
    index.close()


def test_a_second_run_tokenizes_nothing(path):
    index = open_index(path)
    all_tokens(index)
    index.close()
    tokenizer = ByteTokenizer()
    again = open_index(path, tokenizer)
    assert all_tokens(again) == TOKENS
    assert tokenizer.num_encoded == 0
    again.close()


def test_a_changed_file_or_tokenizer_does_not_use_old_tokens(path):
    index = open_index(path)
    assert all_tokens(index) == TOKENS
    other = open_index(path, ByteTokenizer("other"))
    assert other.folder != index.folder
    changed = path.read_text().replace("<150>", "<!!!>")
    path.write_text(changed)
    os.utime(path, ns=(1, 1))
    again = open_index(path)
    assert all_tokens(again) == packed([t.replace("<150>", "<!!!>") for t in TEXTS])
    for one in (index, other, again):
        one.close()


def test_damaged_files_are_made_anew(path, caplog):
    index = open_index(path)
    all_tokens(index)
    index.close()
    shards = sorted(index.folder.glob("tokens-*.bin"))
    good = {shard: shard.read_bytes() for shard in shards}
    flipped = bytearray(good[shards[2]])
    flipped[-1] ^= 1
    shards[2].write_bytes(flipped)
    shards[4].write_bytes(good[shards[4]][:-3])
    shards[5].write_bytes(b"")
    shards[6].unlink()
    again = open_index(path)
    assert all_tokens(again) == TOKENS
    again.close()
    assert {shard: shard.read_bytes() for shard in shards} == good
    assert caplog.text.count("making it anew") == 3


def test_many_readers_of_one_folder_share_the_work(path):
    tokenizers = [ByteTokenizer() for _ in range(8)]
    indexes = [open_index(path, tokenizer) for tokenizer in tokenizers]
    found = [[]] * 8

    def read(number):
        found[number] = all_tokens(indexes[number])

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tokens == TOKENS for tokens in found)
    total = sum(tokenizer.num_encoded for tokenizer in tokenizers)
    assert total == len(TEXTS)
    for index in indexes:
        index.close()


def test_a_lock_that_is_held_forever_is_passed_over(path, monkeypatch, caplog):
    monkeypatch.setattr(token_index, "_LOCK_PATIENCE_SECONDS", 0.05)
    index = open_index(path)
    index.folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'w');"
            "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()",
            str(index.folder / "lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    index.require(10)
    assert "lock is held too long" in caplog.text
    index.close()
    holder.communicate()


KILLED = """
import sys
from pathlib import Path
from data_cases import ByteTokenizer
from torchtitan_cpp.data import token_index
from test_data_token_index import open_index
token_index.FIRST_SHARD_BYTES, token_index.LARGEST_SHARD_BYTES = 64, 512
print(flush=True)
open_index(Path(sys.argv[1])).require(10**12)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.004])
def test_a_kill_while_files_are_written_loses_nothing(path, delay):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    index = open_index(path)
    assert all_tokens(index) == TOKENS
    index.close()


def test_old_temporary_files_are_removed_and_new_ones_kept(path):
    index = open_index(path)
    index.folder.mkdir(parents=True)
    old = index.folder / "tokens-000000.bin.tmp-1-1"
    new = index.folder / "tokens-000000.bin.tmp-2-2"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    index.require(10)
    assert not old.exists()
    assert new.exists()
    index.close()


def test_a_cache_that_cannot_be_written_is_one_error(path):
    (path.parent / "cache").write_text("a file")
    index = open_index(path)
    with pytest.raises(OSError, match="cache"):
        index.require(10)
    index.close()


def test_closing_ends_the_thread_and_wakes_who_waits(path):
    started = threading.Event()

    class Slow(ByteTokenizer):
        def encode(self, text, **options):
            started.set()
            time.sleep(0.01)
            return super().encode(text, **options)

    index = open_index(path, Slow())
    errors = []

    def wait():
        try:
            index.require(10**12)
        except RuntimeError as error:
            errors.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    started.wait()
    index.close()
    waiter.join(timeout=10)
    assert errors == ["dataset data: the loader was closed"]
    assert not index._thread.is_alive()


def test_the_standard_library_is_read_in_sorted_order_without_tests():
    from torchtitan_cpp.data.python_stdlib import stdlib_files, stdlib_folder

    files = stdlib_files()
    assert files == sorted(files)
    assert "json/__init__.py" in files
    parts = {part for name in files for part in Path(name).parts}
    assert not parts & {"test", "tests", "site-packages", "dist-packages"}
    assert all((stdlib_folder() / name).stat().st_size > 0 for name in files)


def test_the_pieces_of_the_standard_library_are_its_files_cut_at_line_ends(tmp_path):
    from torchtitan_cpp.data.python_stdlib import StandardLibrary

    long = "".join(f"line {i} = {'x' * (i % 90)}\n" for i in range(300))
    files = {"a.py": long, "b.py": "short = 1\n", "c.py": "no newline " * 900}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    source = StandardLibrary(list(files), root=tmp_path)
    records = list(source.read([]))
    pieces: dict[str, dict[int, str]] = {name: {} for name in files}
    for record in records:
        name, _, byte = record.place.rpartition(":byte ")
        pieces[Path(name).name][int(byte)] = record.text
    for name, text in files.items():
        assert "".join(pieces[name][byte] for byte in sorted(pieces[name])) == text
    assert all(text.endswith("\n") for text in pieces["a.py"].values())
    order = [record.place for record in records]
    assert order != sorted(order)
    assert [r.place for r in source.read(records[2].cursor)] == order[3:]


def test_a_cache_that_cannot_be_written_is_told_without_a_traceback(path):
    index = open_index(path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(
            CacheError, match="tokens-000000.*too large.*data"
        ) as caught:
            index.require(10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not needs_traceback(caught.value)
    assert not list(index.folder.glob("tokens-*"))
    index.close()
