"""Small models and a small text, for jobs that import this module by its name."""

from __future__ import annotations

from dataclasses import replace

from torchtitan_cpp.data import DatasetConfig, register_dataset
from torchtitan_cpp.models.llama3 import TransformerModelArgs, llama3_args

# 20 rows, 2,048 tokens and a feed-forward width of 60 do not fit three ranks evenly.
llama3_args["tiny"] = TransformerModelArgs(
    dim=20,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    vocab_size=2048,
    multiple_of=12,
    rope_theta=10000,
)

# Heads enough for four tensor ranks.
llama3_args["tiny_heads"] = TransformerModelArgs(
    dim=32,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    vocab_size=2048,
    multiple_of=12,
    rope_theta=10000,
)
llama3_args["tiny_heads_flex_attn"] = replace(
    llama3_args["tiny_heads"], attn_type="flex", attn_mask_type="block_causal"
)

# 29 million parameters.
llama3_args["medium"] = TransformerModelArgs(
    dim=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=4,
    vocab_size=2048,
    rope_theta=10000,
)

WORDS = [
    "def",
    "return",
    "for",
    "in",
    "if",
    "else",
    "import",
    "from",
    "class",
    "self",
    "None",
    "True",
    "while",
    "not",
]


def sentences(count: int = 400) -> list[dict[str, str]]:
    """Documents of a few words each, all different."""
    return [
        {"text": " ".join(WORDS[(i * (i + 3 * k) + k) % 10] for k in range(1 + i % 9))}
        for i in range(count)
    ]


register_dataset("tiny_text", DatasetConfig(loader=lambda path: sentences(), path="-"))


def numbered(count: int = 4000) -> list[dict[str, str]]:
    """Documents that make every row of tokens another one."""
    return [{"text": f"{i} {i * i} {i * 7919 % 10007}"} for i in range(count)]


register_dataset("numbered", DatasetConfig(loader=lambda path: numbered(), path="-"))
