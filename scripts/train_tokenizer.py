"""Train the tokenizer that travels in the package (debug model, 2,048 entries).

A byte-level BPE on the sources of the standard library of the running Python, so that
anyone can make it again: ``python scripts/train_tokenizer.py``. The same Python
version gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from torchtitan_cpp.data.python_stdlib import stdlib_files, stdlib_folder

VOCABULARY_SIZE = 2048
BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PACKAGE_FOLDER = (
    Path(__file__).parents[1] / "python" / "torchtitan_cpp" / "assets" / "tokenizer"
)


def train(texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE with the two special tokens as its first entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[
            AddedToken(BEGIN_OF_TEXT, special=True, normalized=False),
            AddedToken(END_OF_TEXT, special=True, normalized=False),
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(
            f"the text gives only {tokenizer.get_vocab_size()} entries, expected "
            f"{VOCABULARY_SIZE}"
        )
    return tokenizer


def standard_library_texts() -> Iterator[str]:
    """The text of each source file, in sorted order."""
    root = stdlib_folder()
    for name in stdlib_files():
        yield (root / name).read_bytes().decode("utf-8", errors="replace")


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(
        tokenizer.to_str(pretty=True) + "\n", encoding="utf-8"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=PACKAGE_FOLDER)
    arguments = parser.parse_args()
    save(train(standard_library_texts()), arguments.folder)
    print(f"wrote {arguments.folder / 'tokenizer.json'}")


if __name__ == "__main__":
    main()
