"""Datasets by name: the built-in ones, and ``register_dataset`` for own ones."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torchtitan_cpp.data.python_stdlib import (
    StandardLibrary,
    stdlib_files,
    stdlib_folder,
)
from torchtitan_cpp.data.records import (
    Cursor,
    DocumentSource,
    Record,
    bad_record,
    make_record,
)
from torchtitan_cpp.data.text_files import open_text_files
from torchtitan_cpp.errors import UnusablePathError

SampleProcessor = Callable[[Any], Any]
_HASHED_SAMPLES = 256


def text_of_sample(sample: Any) -> Any:
    """The ``text`` of a sample, as most datasets have it."""
    return sample["text"]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """How a dataset is opened (torchtitan's fields, and a version)."""

    path: str | None = None
    """Where it usually lies; ``training.dataset_path`` replaces it. None: no place."""
    loader: Callable[[str], Any]
    """Given the path, returns documents: a ``DocumentSource`` such as
    ``open_text_files(path)``; a sequence of samples (a map-style ``datasets.Dataset``,
    a list), read by index; or an iterable of samples, read as a stream."""
    sample_processor: SampleProcessor = text_of_sample
    """Text of one sample of a sequence or an iterable."""
    version: str = ""
    """Change it when samples change without changing in number, so that tokens cached
    by earlier runs are not used."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A dataset that can only be read from its beginning, or from its own state."""

    open: Callable[[], Iterable[Any]]
    """A fresh iterable of samples, independent of others."""
    sample_processor: SampleProcessor
    identity: str
    """Hash of name and path: what can be known about a stream."""


@dataclass(frozen=True, kw_only=True)
class OpenedDataset:
    """A dataset by its name, opened but not yet read."""

    name: str
    documents: DocumentSource | Stream


class SampleSequence:
    """A :class:`DocumentSource` over a sequence; ``cursor`` is the number of a
    sample."""

    def __init__(
        self,
        samples: Sequence[Any],
        *,
        name: str,
        sample_processor: SampleProcessor = text_of_sample,
        version: str = "",
    ) -> None:
        self._samples = samples
        self._name = name
        self._process = sample_processor
        self._version = version

    @cached_property
    def identity(self) -> str:
        """Name, version, number of samples and up to 256 of them, evenly spaced."""
        size = len(self._samples)
        parts = [self._name, self._version, str(size)]
        parts.append(str(getattr(self._samples, "_fingerprint", "")))
        for index in range(0, size, max(1, size // _HASHED_SAMPLES)):
            record = self._record(index)
            parts.append(record.text or record.problem)
        text = "\0".join(parts)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def cache_key(self) -> str:
        """The same as ``identity``."""
        return self.identity

    def read(self, cursor: Cursor) -> Iterator[Record]:
        """Records from sample ``cursor[0]`` on."""
        for index in range(cursor[0] if cursor else 0, len(self._samples)):
            yield self._record(index)

    def _record(self, index: int) -> Record:
        place, cursor = f"{self._name}[{index}]", [index + 1]
        return process_sample(self._samples[index], self._process, place, cursor)


def process_sample(
    sample: Any, processor: SampleProcessor, place: str, cursor: Cursor
) -> Record:
    """The record of a sample; one that the processor cannot use is a bad record."""
    try:
        value = processor(sample)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        return bad_record(problem, place=place, cursor=cursor)
    return make_record(value, place=place, cursor=cursor)


def register_dataset(
    name: str,
    config: DatasetConfig | None = None,
    *,
    path: str | None = None,
    loader: Callable[[str], Any] | None = None,
    sample_processor: SampleProcessor = text_of_sample,
    version: str = "",
) -> None:
    """Make ``name`` a value of ``training.dataset`` and ``validation.dataset``.

    Give a :class:`DatasetConfig` or its fields. Names ignore case.

    Raises:
        ValueError: the name is taken, or there is no loader.
    """
    if config is None:
        if loader is None:
            raise ValueError(f"register_dataset: dataset '{name}' needs a loader")
        config = DatasetConfig(
            path=path, loader=loader, sample_processor=sample_processor, version=version
        )
    if name.lower() in DATASETS:
        raise ValueError(f"register_dataset: dataset '{name}' is already registered")
    DATASETS[name.lower()] = config


def open_dataset(name: str, path: str | None = None) -> OpenedDataset:
    """Open a registered dataset.

    Args:
        path: replaces the path it was registered with.
    Raises:
        ValueError: unknown name, or a dataset without a place and no path.
        FileNotFoundError: the path does not exist.
    """
    key = name.lower()
    if key not in DATASETS:
        known = sorted(DATASETS)
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(
            f"unknown dataset '{name}'; known are {', '.join(known)}{hint} "
            "(own ones: torchtitan_cpp.data.register_dataset)"
        )
    config = DATASETS[key]
    where = path or config.path
    if where is None:
        raise ValueError(
            f"dataset '{name}' needs a path: "
            "--training.dataset_path FILE, FOLDER or GLOB"
        )
    loaded = config.loader(where)
    documents: DocumentSource | Stream
    if isinstance(loaded, DocumentSource):
        documents = loaded
    elif hasattr(loaded, "__len__") and hasattr(loaded, "__getitem__"):
        documents = SampleSequence(
            loaded,
            name=key,
            sample_processor=config.sample_processor,
            version=config.version,
        )
    elif isinstance(loaded, Iterable):
        identity = f"stream\0{key}\0{where}\0{config.version}"
        documents = Stream(
            open=partial(config.loader, where),
            sample_processor=config.sample_processor,
            identity=hashlib.sha256(identity.encode()).hexdigest(),
        )
    else:
        raise ValueError(
            f"dataset '{name}': its loader returned {type(loaded).__name__}, expected "
            "a DocumentSource, a sequence or an iterable"
        )
    return OpenedDataset(name=key, documents=documents)


def _load_c4(path: str, *, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "the dataset c4 needs the package 'datasets'; run: pip install datasets"
        ) from error
    try:
        return load_dataset(path, name="en", split=split, streaming=True)
    except OSError as error:
        raise UnusablePathError(f"dataset c4: {error}") from error


def _load_python_stdlib(path: str) -> StandardLibrary:
    folder = Path(path)
    files = stdlib_files(folder)
    if not files:
        raise UnusablePathError(f"python_stdlib: no Python sources in '{folder}'")
    return StandardLibrary(files, root=folder)


DATASETS: dict[str, DatasetConfig] = {
    "c4": DatasetConfig(path="allenai/c4", loader=partial(_load_c4, split="train")),
    "c4_validation": DatasetConfig(
        path="allenai/c4", loader=partial(_load_c4, split="validation")
    ),
    "c4_test": DatasetConfig(path="tests/assets/c4_test", loader=open_text_files),
    "python_stdlib": DatasetConfig(
        path=str(stdlib_folder()), loader=_load_python_stdlib
    ),
    "local": DatasetConfig(loader=open_text_files),
}
"""Registered datasets by lower-case name; ``local`` takes ``training.dataset_path``."""
