"""What rank 0 adds to the blobs of all ranks: values beside tensors, ``.metadata``."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from torchtitan_cpp.checkpoint.dcp.blobs import parse_address
from torchtitan_cpp.checkpoint.dcp.keys import (
    TRAIN_STATE_KEYS,
    Path,
    key_of,
    param_group_path,
    state_path,
    tensor_path,
)
from torchtitan_cpp.checkpoint.dcp.writing import BlobWriter
from torchtitan_cpp.checkpoint.manifest import StoredFile, StoredTensor
from torchtitan_cpp.checkpoint.shards import dtype_of
from torchtitan_cpp.checkpoint.state import Json, TorchSettings

METADATA_NAME = ".metadata"
_VALUES_NAME = "__0_1.distcp"


def write_metadata(
    folder: str,
    files: Sequence[StoredFile],
    tensors: Mapping[str, StoredTensor],
    *,
    scalars: Mapping[str, Json],
    settings: TorchSettings | None,
    reports: Sequence[Mapping[str, Any]],
) -> list[StoredFile]:
    """Complete a folder whose blobs are written; durable on return.

    Args:
        files, tensors: what the ranks have written.
        scalars: as in ``TrainingState``; empty for weights alone.
        settings: of this rank; None: no values but those in ``scalars`` are written.
        reports: of all ranks, what ``report_settings`` returned there.
    Returns:
        The files that were added.
    """
    added: list[StoredFile] = []
    writer = _ValueWriter(folder)
    for part, path, value in _values(scalars, settings):
        writer.add(part, path, value)
    moments = [name for name in tensors if tensors[name].kind == "optimizer"]
    _add_numbers(writer, scalars, moments)
    for report in reports:
        for fqn, index in report["group_of"].items():
            for name, value in report["groups"][index].items():
                held = tuple(value) if isinstance(value, list) else value
                writer.add((index, name), param_group_path(fqn, name), held)
        writer.forget()
    if writer.places:
        added.append(writer.finish())
    file = BlobWriter(folder, METADATA_NAME)
    file.write(_pickled(files, tensors, writer))
    return [*added, file.finish()]


class _ValueWriter:
    """Blobs of values; one that many keys share is written once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._writer: BlobWriter | None = None
        self._shared: dict[Any, str] = {}
        self.places: dict[Path, tuple[str, torch.Tensor | None]] = {}
        """Path to address, and the value where it is a tensor."""

    def add(self, shared: Any, path: Path, value: Any) -> None:
        """Add a value; those with the same ``shared`` are equal. None: it is alone."""
        self._writer = self._writer or BlobWriter(self._folder, _VALUES_NAME)
        blob = self._shared.get(shared) if shared is not None else None
        if blob is None:
            blob = self._writer.save(value)
        if shared is not None:
            self._shared[shared] = blob
        self.places[path] = (blob, value if isinstance(value, torch.Tensor) else None)

    def forget(self) -> None:
        """What comes now shares nothing with what came before."""
        self._shared.clear()

    def finish(self) -> StoredFile:
        assert self._writer is not None
        return self._writer.finish()


def _values(
    scalars: Mapping[str, Json], settings: TorchSettings | None
) -> Iterator[tuple[Any, Path, Any]]:
    """What torchtitan's parts hold beside the optimizer: (shared, path, value)."""
    train_state = scalars.get("train_state")
    if isinstance(train_state, Mapping):
        for ours, theirs in TRAIN_STATE_KEYS.items():
            if ours in train_state:
                yield None, ("train_state", theirs), train_state[ours]
    schedule = scalars.get("lr_scheduler")
    if settings is None:
        return
    if isinstance(schedule, Mapping) and "last_epoch" in schedule:
        for name, value in _lambda_lr(settings, int(str(schedule["last_epoch"]))):
            yield None, ("lr_scheduler", name), value
    # Where a rank of ours was in the data means nothing there: an empty state has its
    # loader begin anew.
    for rank in range(settings.data_ranks):
        yield "dataloader", ("dataloader", f"dp_rank_{rank}"), pickle.dumps({})
    yield None, ("dataloader", "world_size"), settings.data_ranks


def _lambda_lr(settings: TorchSettings, last_epoch: int) -> Iterator[tuple[str, Any]]:
    """The state of torch's ``LambdaLR`` after so many steps."""
    groups = [
        {"params": [torch.zeros(1)], "lr": rate} for rate in settings.initial_rates
    ]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        torch.optim.SGD(groups), lr_lambda=lambda step: 1.0
    )
    state = scheduler.state_dict()
    del state["lr_lambdas"]  # torchtitan's are objects without a state: no key
    state["last_epoch"] = last_epoch
    state["_step_count"] = last_epoch + 1
    state["_last_lr"] = list(settings.rates)
    yield from state.items()


def _add_numbers(
    writer: _ValueWriter, scalars: Mapping[str, Json], moments: Sequence[str]
) -> None:
    """The numbers that an optimizer keeps for each parameter, as tensors."""
    numbers = scalars.get("optimizer_numbers")
    if isinstance(numbers, Mapping):
        for name, by_parameter in numbers.items():
            assert isinstance(by_parameter, Mapping)
            for fqn, number in by_parameter.items():
                tensor = torch.tensor(float(str(number)))
                writer.add((name, number), state_path(fqn, name), tensor)
    elif "optimizer_step" in scalars:
        steps = torch.tensor(float(str(scalars["optimizer_step"])))
        for moment in moments:
            fqn = moment.removeprefix("optimizer.").partition(".")[2]
            if fqn:
                writer.add("step", state_path(fqn, "step"), steps)


def _pickled(
    files: Sequence[StoredFile],
    tensors: Mapping[str, StoredTensor],
    values: _ValueWriter,
) -> bytes:
    """The content of ``.metadata``, in torch's own classes."""
    # Takes 0.7 s to import, which runs with the native format need not pay.
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )

    described: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    paths: dict[str, Path] = {}

    def place(key: str, offset: Sequence[int] | None, name: str, blob: str) -> None:
        index = MetadataIndex(key, offset)
        places[index] = filesystem._StorageInfo(name, *parse_address(blob))

    for name, stored in tensors.items():
        path = tensor_path(name, stored.kind)
        key = key_of(path)
        paths[key] = path
        described[key] = TensorStorageMetadata(
            properties=TensorProperties(dtype=dtype_of(stored.dtype)),
            size=torch.Size(stored.shape),
            chunks=[
                ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size))
                for box in stored.boxes
            ],
        )
        for box in stored.boxes:
            place(key, box.offset, files[box.file].name, box.key)
    for path, (blob, tensor) in values.places.items():
        key = key_of(path)
        paths[key] = path
        if tensor is None:
            described[key] = BytesStorageMetadata()
            place(key, None, _VALUES_NAME, blob)
        else:
            chunk = ChunkStorageMetadata(torch.Size(), torch.Size())
            described[key] = TensorStorageMetadata(
                properties=TensorProperties(dtype=tensor.dtype),
                size=torch.Size(),
                chunks=[chunk],
            )
            place(key, (), _VALUES_NAME, blob)
    metadata = Metadata(
        state_dict_metadata=described,
        planner_data=paths,
        storage_data=places,
        storage_meta=StorageMeta(),
    )
    metadata.version = getattr(filesystem, "CURRENT_DCP_VERSION", None)
    return pickle.dumps(metadata)
