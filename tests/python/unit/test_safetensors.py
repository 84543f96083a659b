"""The C++ safetensors code against the safetensors package, both ways."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save_file

from torchtitan_cpp import _C

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def random_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}": torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for dtype in DTYPES
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    return tensors | {'odd "name"\n\u00e9': torch.arange(7)}


def read(path: Path, name: str) -> torch.Tensor:
    reader = _C.storage.SafetensorsReader(str(path))
    dtype, shape = reader.entries[name]
    out = torch.empty(shape, dtype=dtype)
    zeros = [0] * len(shape)
    reader.read_box(name, out, offset=zeros, size=shape, out_offset=zeros)
    return out


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(
        a.contiguous().view(-1).view(torch.uint8),
        b.contiguous().view(-1).view(torch.uint8),
    )


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    tensors = random_tensors()
    path = tmp_path / "ours.safetensors"
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    writer = _C.storage.SafetensorsWriter(
        str(path),
        [(name, tensor.dtype, tensor.shape) for name, tensor in ordered],
        metadata={"format": "pt"},
    )
    for name, tensor in ordered:
        writer.append(name, tensor)
    size, sha256, blocks = writer.finish()
    written = _C.storage.VerifiedFile(str(path), blocks=blocks, num_threads=1)
    assert written.read(0, size) == path.read_bytes()
    assert sha256 == hashlib.sha256(blocks.encode()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same_bytes(loaded[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    tensors = random_tensors()
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, metadata={"key": "value"})
    reader = _C.storage.SafetensorsReader(str(path))
    assert reader.entries.keys() == tensors.keys()
    assert reader.metadata == {"key": "value"}
    assert all(same_bytes(read(path, name), tensors[name]) for name in tensors)


def test_tensors_cross_only_as_they_are_stored(tmp_path: Path) -> None:
    path = str(tmp_path / "a.safetensors")
    writer = _C.storage.SafetensorsWriter(
        path, [("w", torch.float32, (2, 3))], metadata={}
    )
    with pytest.raises(ValueError, match="contiguous"):
        writer.append("w", torch.zeros(3, 2).t())
    with pytest.raises(ValueError, match="24 bytes"):
        writer.append("w", torch.zeros(2, 4))
    writer.append("w", torch.zeros(2, 3))
    writer.finish()
    reader = _C.storage.SafetensorsReader(path)
    where = {"offset": [0, 0], "size": [2, 3], "out_offset": [0, 0]}
    with pytest.raises(ValueError, match="expected Float, got Double"):
        reader.read_box("w", torch.zeros(2, 3, dtype=torch.float64), **where)
    with pytest.raises(ValueError, match='no tensor "v"'):
        reader.read_box("v", torch.zeros(2, 3), **where)


def test_errors_of_the_system_are_os_errors_with_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.safetensors")
    with pytest.raises(FileNotFoundError) as caught:
        _C.storage.SafetensorsReader(path)
    assert caught.value.filename == path
    assert str(caught.value) == (
        f"[Errno 2] cannot open: No such file or directory: '{path}'"
    )


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


def damaged_files() -> list[bytes]:
    """Files of every kind of mistake, and good ones among them."""
    good = f'{{"__metadata__":{{"k":"v"}},"a":{entry()}}}'
    corpus = [
        with_header(header.encode(), data)
        for header, data in [
            (good, bytes(4)),
            (good + "   ", bytes(4)),
            ("  " + good, bytes(4)),
            (good, bytes(3)),
            (good, bytes(5)),
            ("{}", b""),
            ("{}", b"x"),
            ("", b""),
            ("[]", b""),
            ("null", b""),
            (f'{{"a":{entry()},"a":{entry()}}}', bytes(4)),
            (f'{{"a":{entry()},"b":{entry()}}}', bytes(4)),
            (f'{{"a":{entry()},"b":{entry(offsets=(4, 8))}}}', bytes(8)),
            (f'{{"a":{entry()},"b":{entry(offsets=(8, 12))}}}', bytes(12)),
            (f'{{"a":{entry(offsets=(4, 8))}}}', bytes(8)),
            (f'{{"a":{entry(offsets=(4, 0))}}}', bytes(4)),
            (f'{{"a":{entry(offsets=(0, 8))}}}', bytes(8)),
            (f'{{"a":{entry(dtype="F99")}}}', bytes(4)),
            (f'{{"a":{entry(dtype="F4", shape=(8,))}}}', bytes(4)),
            (f'{{"a":{entry(dtype="F8_E8M0", shape=(4,))}}}', bytes(4)),
            (f'{{"a":{entry(dtype="C64", offsets=(0, 8))}}}', bytes(8)),
            (f'{{"a":{entry(shape=(2**62, 2**62), offsets=(0, 0))}}}', b""),
            (f'{{"a":{entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}}}', b""),
            (f'{{"a":{entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}}}', b""),
            (f'{{"a":{entry(shape=(2**64,), offsets=(0, 0))}}}', b""),
            (f'{{"a":{entry(shape=(-1,))}}}', bytes(4)),
            (f'{{"a":{entry(shape=(1.0,))}}}', bytes(4)),
            (f'{{"a":{entry(shape=[1] * 65)}}}', bytes(4)),
            (f'{{"a":{entry(shape=())}}}', bytes(4)),
            ('{"a":{"dtype":"F32","shape":[1]}}', bytes(4)),
            ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', bytes(4)),
            ('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', b""),
            ('{"a":["F32",[1],[0,4]]}', bytes(4)),
            ('{"__metadata__":{"k":1}}', b""),
            ('{"__metadata__":null}', b""),
            ('{"__metadata__":{"k":"v","k":"w"}}', b""),
            ('{"a\\ud800":' + entry() + "}", bytes(4)),
            ("{" * 500, b""),
            ('{"a":' + "[" * 500 + "}", b""),
        ]
    ]
    corpus += [with_header(b'{"\xff":' + entry().encode() + b"}", bytes(4))]
    whole = with_header(good.encode(), bytes(4))
    corpus += [whole[:size] for size in range(len(whole))]
    corpus += [struct.pack("<Q", size) + whole[8:] for size in (0, 1, 2**31, 2**63)]
    folder = Path(__file__).parents[2] / "fuzz" / "corpus" / "safetensors"
    corpus += [path.read_bytes() for path in sorted(folder.iterdir())]
    rng = random.Random(5)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(8, len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at]
            else:
                data.insert(at, whole[rng.randrange(8, len(whole))])
        data[:8] = struct.pack("<Q", len(data) - 12)
        corpus.append(bytes(data))
    return corpus


@pytest.mark.slow
def test_what_the_package_refuses_is_never_accepted(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    accepted_by = {"both": 0, "package": 0, "none": 0}
    for data in damaged_files():
        path.write_bytes(data)
        try:
            with safe_open(path, "pt") as file:
                package = sorted(file.keys())
        except (SafetensorError, OSError, ValueError):
            package = None
        try:
            ours = sorted(_C.storage.SafetensorsReader(str(path)).entries)
        except ValueError:
            ours = None
        assert ours is None or ours == package, data
        kind = "none" if package is None else "package" if ours is None else "both"
        accepted_by[kind] += 1
    assert accepted_by["both"] > 50 and accepted_by["none"] > 1000, accepted_by
