"""Writes the files below corpus/ anew: small ones, good and bad, for each reader."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"


def safetensors(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + data


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_files() -> dict[str, bytes]:
    several = {
        "__metadata__": {"format": "pt", 'odd "\\\n\u00e9': ""},
        "w": tensor("F32", [2, 3], 0, 24),
        "scalar": tensor("I64", [], 24, 32),
        "empty": tensor("BF16", [0, 7], 32, 32),
        "half": tensor("F16", [3], 32, 38),
        "bytes": tensor("U8", [1, 1, 2], 38, 40),
    }
    one = json.dumps({"w": tensor("F32", [1], 0, 4)})
    wraps = json.dumps({"w": tensor("F32", [2**62, 2**62], 0, 0)})
    return {
        "several": safetensors(json.dumps(several), bytes(range(40))),
        "padded": safetensors(one + "    ", bytes(4)),
        "nothing": safetensors("{}"),
        "no_length": b"\x02\x00",
        "long_length": struct.pack("<Q", 2**63) + b"{}",
        "too_short": safetensors(one, bytes(3)),
        "wraps": safetensors(wraps),
        "hole": safetensors(json.dumps({"w": tensor("F32", [1], 4, 8)}), bytes(8)),
        "twice": safetensors(one[:-1] + ", " + one[1:], bytes(4)),
        "deep": safetensors('{"w":' + "[" * 64),
        "escape": safetensors('{"\\ud83d\\ude00":' + one[6:], bytes(4)),
    }


def manifest(**changes: Any) -> bytes:
    def box(file: int, offset: list[int], size: list[int]) -> dict[str, Any]:
        return {"file": file, "key": "w", "offset": offset, "size": size}

    value: dict[str, Any] = {
        "format": "torchtitan_cpp checkpoint",
        "format_version": 1,
        "step": 10,
        "id": "0123456789abcdef",
        "parent": "",
        "sequence": 3,
        "content": "training",
        "world_size": 2,
        "config_hash": "c",
        "torch_version": "2.13.0",
        "torchtitan_cpp_version": "0.1.0",
        "files": [
            {"name": f"rank-0000{i}.safetensors", "size_bytes": 99, "sha256": "a" * 64}
            for i in range(2)
        ],
        "tensors": {
            "w": {
                "kind": "model",
                "dtype": "F32",
                "shape": [3, 2],
                "boxes": [box(0, [0, 0], [2, 2]), box(1, [2, 0], [1, 2])],
            },
            "step": {
                "kind": "optimizer",
                "dtype": "I64",
                "shape": [],
                "boxes": [box(0, [], [])],
            },
        },
        "scalars": {"train_state": {"step": 10, "rows": [1.5, None, True, "x"]}},
        "gathered": {"rng": [1, 2]},
    }
    return json.dumps(value | changes, separators=(",", ":")).encode()


def hashed_file(name: str, size_bytes: int, blocks: str) -> dict[str, Any]:
    digest = hashlib.sha256(blocks.encode()).hexdigest()
    return {
        "name": name,
        "size_bytes": size_bytes,
        "sha256": digest,
        "block_sha256": blocks,
    }


def manifest_files() -> dict[str, bytes]:
    hashed = [
        hashed_file("rank-00000.safetensors", (1 << 20) + 1, "ab" * 64),
        hashed_file("rank-00001.safetensors", 0, ""),
    ]
    too_few = [hashed_file("x", (1 << 20) + 1, "a" * 64)]
    outside = [{"name": "../x", "size_bytes": 1, "sha256": "a" * 64}]
    return {
        "training": manifest(),
        "model": manifest(content="model", parent="f" * 16, scalars={}, gathered={}),
        "folder": manifest(content="huggingface", tensors={}, gathered={}),
        "outside": manifest(files=outside, tensors={}),
        "blocks": manifest(files=hashed),
        "too_few_blocks": manifest(files=too_few, tensors={}),
        "other_version": manifest(format_version=2),
        "huge": manifest(step=2**63),
        "unknown_key": manifest(more=1),
        "nothing": b"",
        "deep": b"[" * 200,
    }


TOML_TEXTS = {
    "types": 'a = 1\nb = -1.5e3\nc = true\nd = "x\\u00e9"\ne = inf\nf = nan\n'
    "g = 0x_ff\nh = 0xff\ni = 1_000\n",
    "tables": '[a.b]\nc = 1\n[a]\nd = {e = 2, "f g" = [1, 2]}\n[[h]]\n[[h]]\ni = 3\n',
    "strings": "a = '''\nx'y\n'''\nb = \"\"\"\\\n  z\"\"\"\nc = 'C:\\d'\n",
    "dates": "a = 1979-05-27T07:32:00Z\nb = 1979-05-27\nc = 07:32:00.5\n",
    "arrays": "a = [[1, 2,\n# comment\n], ['x']]\nb = []\n",
    "dotted": 'a.b.c = 1\na."b.d" = 2\n',
    "twice": "a = 1\na = 2\n",
    "unclosed": 'a = "x\n[b\n',
    "deep": "a = " + "[" * 300,
    "large": f"a = {2**63}\n",
    # toml++ 3.3 has no defined answer to the first two.
    "beyond_ascii_in_a_key": "a.b\u045c = 2,\n# c 2\n",
    "beyond_ascii_behind_a_backslash": 'a = """\\\n \u045c\u00a0"""\n',
    "beyond_ascii_in_a_value": "a = 1.'\u045c'\n",
    "beyond_ascii": "'\u00e9' = \"\u2028\" # \u00a0\n",
    "control": 'a = "\x01"\n\xef\xbb\xbf',
}


def main() -> None:
    groups = {
        "safetensors": safetensors_files(),
        "manifest": manifest_files(),
        "toml": {name: text.encode() for name, text in TOML_TEXTS.items()},
    }
    for group, files in groups.items():
        (CORPUS / group).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (CORPUS / group / name).write_bytes(data)


if __name__ == "__main__":
    main()
