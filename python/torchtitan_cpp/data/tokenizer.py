"""Tokenizers: Hugging Face folders, and the checks that every tokenizer passes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer

from torchtitan_cpp.data.missing_path import missing_path
from torchtitan_cpp.data.tokenizer_files import load_tokenizer

_SPECIAL_TOKEN_KEYS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class BaseTokenizer(ABC):
    """What a trainer needs of a tokenizer; own ones derive from it."""

    eos_id: int | None

    def __init__(self) -> None:
        self.eos_id = None

    @abstractmethod
    def encode(self, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a text; keywords ``add_bos`` and ``add_eos``."""

    @abstractmethod
    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Text of token ids."""

    @abstractmethod
    def get_vocab_size(self) -> int:
        """Number of entries."""


class HuggingFaceTokenizer(BaseTokenizer):
    """The tokenizer of a Hugging Face folder, with torchtitan's BOS and EOS rules.

    ``bos_token`` and ``eos_token`` come from ``tokenizer_config.json`` (a string or an
    object with ``content``). ``encode`` adds one only when asked (``add_bos``,
    ``add_eos``; by default what ``add_bos_token`` and ``add_eos_token`` of that file
    say, else no) and only when the tokenizer's own post-processor does not add it.

    Args:
        tokenizer_path: folder with ``tokenizer.json``, or ``vocab.json`` or
            ``vocab.txt`` (with ``merges.txt`` for byte-level BPE).
    Raises:
        FileNotFoundError: the folder or all of these files are missing.
        ValueError: a file is damaged; the message names it.
    """

    def __init__(self, tokenizer_path: str | Path) -> None:
        super().__init__()
        folder = Path(tokenizer_path)
        if not folder.is_dir():
            raise missing_path("model.hf_assets_path", tokenizer_path)
        self.tokenizer_path = str(tokenizer_path)
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        self.config: dict[str, Any] | None = _read_config(
            folder / "tokenizer_config.json"
        )
        config = self.config or {}
        self.bos_token = _special_token(config, "bos_token")
        self.eos_token = _special_token(config, "eos_token")
        added = _added_tokens(config)
        if added:
            self.tokenizer.add_special_tokens(added)
        self.bos_id: int | None = self._id_of(self.bos_token)
        self.eos_id = self._id_of(self.eos_token)
        self.default_add_bos = bool(config.get("add_bos_token") or False)
        self.default_add_eos = bool(config.get("add_eos_token") or False)
        self.hf_adds_bos, self.hf_adds_eos = self._what_the_post_processor_adds()

    def encode(
        self,
        text: str = "",
        *,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
    ) -> list[int]:
        """Token ids of ``text``; None means the default of the tokenizer's folder."""
        return self._finish(
            list(self.tokenizer.encode(text).ids),
            self.default_add_bos if add_bos is None else add_bos,
            self.default_add_eos if add_eos is None else add_eos,
        )

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole documents, each with BOS and EOS; uses all cores."""
        encodings = self.tokenizer.encode_batch_fast(list(texts))
        return [self._finish(list(encoding.ids), True, True) for encoding in encodings]

    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str:
        """Text of ``token_ids``; keywords go to ``tokenizers.Tokenizer.decode``."""
        text: str = self.tokenizer.decode(list(token_ids), **kwargs)
        return text

    def get_vocab_size(self) -> int:
        """Number of entries, added tokens included."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def vocab_size(self) -> int:
        """Number of entries, added tokens included."""
        return self.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """All entries with their ids."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return vocabulary

    def token_to_id(self, token: str) -> int | None:
        """Id of an entry, None if there is none."""
        found: int | None = self.tokenizer.token_to_id(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """Entry of an id, None if there is none."""
        found: str | None = self.tokenizer.id_to_token(token_id)
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides about the ids of a document."""
        parts = [self.tokenizer.to_str(), str(self.bos_id), str(self.eos_id)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _finish(self, ids: list[int], add_bos: bool, add_eos: bool) -> list[int]:
        if add_bos and not self.hf_adds_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_eos and not self.hf_adds_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.token_to_id(token)

    def _what_the_post_processor_adds(self) -> tuple[bool, bool]:
        added = list(self.tokenizer.encode("").ids)
        adds_bos = self.bos_id in added
        adds_eos = self.eos_id in added
        if self.bos_id == self.eos_id and len(added) == 1 and adds_bos:
            # One token plays both parts (GPT-2): its place around a text tells which.
            around = self.tokenizer.encode("a").ids
            return around[0] == self.bos_id, around[-1] == self.eos_id
        return adds_bos, adds_eos


class JobConfigWithModel(Protocol):
    """The part of a job configuration that names the tokenizer's folder."""

    @property
    def model(self) -> Any:
        """Section with ``hf_assets_path``."""


def build_hf_tokenizer(job_config: JobConfigWithModel) -> HuggingFaceTokenizer:
    """The tokenizer of ``model.hf_assets_path`` (TrainSpec's ``build_tokenizer_fn``).

    Raises:
        FileNotFoundError, ValueError: see :class:`HuggingFaceTokenizer`.
    """
    return HuggingFaceTokenizer(job_config.model.hf_assets_path)


build_tokenizer = build_hf_tokenizer


def largest_token_id(tokenizer: Any) -> int:
    """Largest id that ``tokenizer`` can give.

    By its ``get_vocab()`` if it has one, else by its ``get_vocab_size()``.
    """
    get_vocab = getattr(tokenizer, "get_vocab", None)
    if get_vocab is not None:
        return max(get_vocab().values(), default=-1)
    return int(tokenizer.get_vocab_size()) - 1


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer can give an id that the model has no row for.

    Args:
        vocab_size: number of rows of the model's embedding.
    """
    largest = largest_token_id(tokenizer)
    if largest >= vocab_size:
        where = getattr(tokenizer, "tokenizer_path", type(tokenizer).__name__)
        raise ValueError(
            f"the tokenizer '{where}' has ids up to {largest}, but the model's "
            f"vocabulary has {vocab_size} entries (ids 0 to {vocab_size - 1}); use the "
            f"model's own tokenizer or a model with vocab_size >= {largest + 1}"
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash that changes when the tokenizer would give other ids.

    An own tokenizer may have an attribute ``fingerprint``; otherwise its class, its
    vocabulary and the ids of a probe text are hashed.
    """
    own = getattr(tokenizer, "fingerprint", None)
    if isinstance(own, str):
        return own
    probe = "The quick brown fox, 0123456789;\n\tx = {y: [1.5e-3]}  # caf\u00e9"
    get_vocab = getattr(tokenizer, "get_vocab", dict)
    parts = [
        type(tokenizer).__qualname__,
        tokenizer.get_vocab_size(),
        sorted(get_vocab().items()),
        tokenizer.encode(probe, add_bos=True, add_eos=True),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def encode_documents(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of documents with BOS and EOS, in one call where the tokenizer can."""
    together = getattr(tokenizer, "encode_documents", None)
    if together is not None:
        ids: list[list[int]] = together(texts)
        return ids
    return [tokenizer.encode(text, add_bos=True, add_eos=True) for text in texts]


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object, got {type(config).__name__}")
    return config


def _special_token(config: dict[str, Any], key: str) -> str | None:
    token = config.get(key)
    if isinstance(token, dict):
        token = token.get("content")
        if not isinstance(token, str):
            raise ValueError(f"tokenizer_config.json: {key} has no text 'content'")
    if token is not None and not isinstance(token, str):
        raise ValueError(
            f"tokenizer_config.json: {key}: expected a string or an object with "
            f"'content', got {token!r}"
        )
    return token


def _added_tokens(config: dict[str, Any]) -> list[AddedToken]:
    tokens: list[AddedToken] = []
    for key in _SPECIAL_TOKEN_KEYS:
        content = _special_token(config, key)
        if content is not None:
            tokens.append(_added_token(content, config[key]))
    decoder = config.get("added_tokens_decoder") or {}
    # By number, so that a token that is new to the tokenizer gets the next free id.
    for number in sorted(decoder, key=int):
        entry = decoder[number]
        if isinstance(entry, dict) and "content" in entry:
            tokens.append(_added_token(entry["content"], entry))
    return tokens


def _added_token(content: str, entry: Any) -> AddedToken:
    if not isinstance(entry, dict):
        return AddedToken(content, special=True)
    return AddedToken(
        content,
        single_word=entry.get("single_word", False),
        lstrip=entry.get("lstrip", False),
        rstrip=entry.get("rstrip", False),
        normalized=entry.get("normalized", True),
        special=entry.get("special", True),
    )
