"""A Llama 3 small enough for every test, and its twin in ``transformers``."""

from __future__ import annotations

import copy

import transformers

from torchtitan_cpp.models.llama3 import (
    RoPEScalingArgs,
    Transformer,
    TransformerModelArgs,
)
from torchtitan_cpp.models.llama3.state_dict_adapter import (
    Llama3StateDictAdapter,
    hf_config,
)

_ARGS = TransformerModelArgs(
    dim=48,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    vocab_size=67,
    multiple_of=16,
    rope_theta=1e4,
    rope_scaling_args=None,
    max_seq_len=64,
)
CASES = {
    "gqa": {},
    "mha": {"n_kv_heads": None},
    "tied": {"enable_weight_tying": True},
    "scaled rope": {
        "rope_scaling_args": RoPEScalingArgs(
            scaling_factor=4.0, original_max_position_embeddings=16
        )
    },
}


def small(**changes: object) -> TransformerModelArgs:
    """The small sizes but for these."""
    args = copy.deepcopy(_ARGS)
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def transformers_model(model: Transformer) -> transformers.LlamaForCausalLM:
    """With the same weights, which must all have a place there."""
    args = model.model_args
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(args)))
    weights = Llama3StateDictAdapter(args, None).to_hf(dict(model.state_dict()))
    missing, unexpected = other.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if args.enable_weight_tying else set())
    other.tie_weights()
    return other.eval()
