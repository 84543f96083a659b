"""Small tokenizers, datasets and configurations for the tests of the data part."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from torchtitan_cpp.data import BaseTokenizer, build_dataloader

BOS, EOS = 0, 1


class ByteTokenizer(BaseTokenizer):
    """Byte b is id b + 2; BOS is 0, EOS is 1. Counts the documents that it encodes."""

    def __init__(self, version: str = "") -> None:
        super().__init__()
        self.eos_id = EOS
        self.fingerprint = f"bytes{version}"
        self.num_encoded = 0

    def encode(self, text, *, add_bos=False, add_eos=False):
        self.num_encoded += 1
        ids = [byte + 2 for byte in text.encode()]
        return [BOS] * add_bos + ids + [EOS] * add_eos

    def decode(self, ids):
        return bytes(i - 2 for i in ids if i > 1).decode()

    def get_vocab_size(self):
        return 258


def packed(texts: list[str]) -> list[int]:
    """The token sequence of documents, by the rule itself."""
    tokenizer = ByteTokenizer()
    return [
        token
        for text in texts
        for token in tokenizer.encode(text, add_bos=True, add_eos=True)
    ]


def documents(count: int, length: int = 30) -> list[str]:
    """Different texts of different lengths."""
    return [f"<{i}>" + chr(97 + i % 26) * (i * 7 % length) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def job(
    folder: Path,
    *,
    dataset: str = "local",
    path: Path | str | None = None,
    local: int = 2,
    total: int = -1,
    seq_len: int = 8,
    workers: int = 0,
    pin_memory: bool = False,
    **more: object,
) -> SimpleNamespace:
    """A job configuration as far as data go; training and validation alike."""
    section = SimpleNamespace(
        dataset=dataset,
        dataset_path=None if path is None else str(path),
        local_batch_size=local,
        global_batch_size=total,
        seq_len=seq_len,
        dataloader=SimpleNamespace(
            num_workers=workers,
            persistent_workers=False,
            pin_memory=pin_memory,
            prefetch_factor=None,
        ),
        **more,
    )
    return SimpleNamespace(
        job=SimpleNamespace(dump_folder=str(folder / "outputs")),
        training=section,
        validation=section,
    )


def loader(folder: Path, *, ranks: int = 1, rank: int = 0, infinite=True, **options):
    """A training loader over the byte tokenizer."""
    tokenizer = options.pop("tokenizer", None) or ByteTokenizer()
    config = job(folder, **options)
    return build_dataloader(ranks, rank, tokenizer, config, infinite)


def rows_of_step(loaders: list) -> torch.Tensor:
    """[G, S + 1]: the global batch of the next step, put together from all ranks."""
    mapping = loaders[0].rows
    rows = torch.full((mapping.global_batch_size, mapping.seq_len + 1), -1)
    for one in loaders:
        for microbatch in range(mapping.num_microbatches):
            batch, labels = next(one)
            first = (microbatch * mapping.num_ranks + one.rows.rank) * len(labels)
            rows[first : first + len(labels), :-1] = batch["input"]
            assert torch.equal(batch["input"][:, 1:], labels[:, :-1])
            rows[first : first + len(labels), -1] = labels[:, -1]
    return rows


def same(first, second) -> bool:
    """Whether two batches are equal."""
    return torch.equal(first[0]["input"], second[0]["input"]) and torch.equal(
        first[1], second[1]
    )
