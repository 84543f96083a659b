"""Reads the files of a Hugging Face tokenizer folder, newest format first."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel


def load_tokenizer(folder: Path) -> Tokenizer:
    """``tokenizer.json``; else a vocabulary, byte-level BPE if there are merges.

    Raises:
        FileNotFoundError: none of the known files is there.
        ValueError: a file is damaged.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            return Tokenizer.from_file(str(whole))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{whole}: {error}") from error
    vocabulary = _read_vocabulary(folder)
    merges = folder / "merges.txt"
    if not merges.is_file():
        return Tokenizer(WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=_read_merges(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _read_vocabulary(folder: Path) -> dict[str, int]:
    as_json, as_text = folder / "vocab.json", folder / "vocab.txt"
    if as_json.is_file():
        try:
            vocabulary: dict[str, int] = json.loads(as_json.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{as_json}: not valid JSON: {error}") from error
        return vocabulary
    if as_text.is_file():
        lines = as_text.read_text("utf-8").split("\n")
        return {line.strip(): i for i, line in enumerate(lines) if line.strip()}
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    raise FileNotFoundError(
        f"model.hf_assets_path: no tokenizer in '{folder}': expected tokenizer.json, "
        "vocab.json or vocab.txt (with merges.txt for byte-level BPE), found "
        f"{', '.join(found) or 'no file'}"
    )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in path.read_text("utf-8").split("\n"):
        parts = line.split()
        if len(parts) >= 2 and not line.startswith("#version"):
            merges.append((parts[0], parts[1]))
    return merges
