"""Llama 3 weights under the names and in the rotary order of Hugging Face's Llama."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import torch

from torchtitan_cpp.checkpoint.state_dict_adapter import StateDictAdapter
from torchtitan_cpp.models.llama3.args import TransformerModelArgs

# Ours to Hugging Face's; {} is the layer.
_TOP_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TO_HF = _TOP_NAMES | {
    f"layers.{{}}.{ours}.weight": f"model.layers.{{}}.{theirs}.weight"
    for ours, theirs in _LAYER_NAMES.items()
}
_FROM_HF = {theirs: ours for ours, theirs in _TO_HF.items()}
_INV_FREQ = "model.layers.{}.self_attn.rotary_emb.inv_freq"  # computed, never loaded


class Llama3StateDictAdapter(StateDictAdapter):
    """Renames, and reorders the rows of wq and wk.

    Here the two halves of a rotated pair are neighbours; there they lie half a head
    apart. With tied embeddings ``lm_head`` is neither written nor needed.
    """

    def __init__(
        self, model_args: TransformerModelArgs, hf_assets_path: str | None
    ) -> None:
        super().__init__(model_args, hf_assets_path)
        self._heads = {
            "layers.{}.attention.wq.weight": model_args.n_heads,
            "layers.{}.attention.wk.weight": model_args.n_kv_heads
            or model_args.n_heads,
        }
        self._is_tied = bool(getattr(model_args, "enable_weight_tying", False))

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a name that the model does not have."""
        renamed: dict[str, Any] = {}
        for name, tensor in state_dict.items():
            pattern, layer = _split(name)
            if pattern not in _TO_HF:
                raise ValueError(_unknown("Llama 3 weight", name, _TO_HF, layer))
            if pattern == "output.weight" and self._is_tied:
                continue
            if pattern in self._heads:
                tensor = _to_halves(tensor, self._heads[pattern])
            renamed[_TO_HF[pattern].format(layer)] = tensor
        return renamed

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a name that Hugging Face's Llama does not have."""
        renamed: dict[str, Any] = {}
        for name, tensor in hf_state_dict.items():
            pattern, layer = _split(name)
            if pattern == _INV_FREQ:
                continue
            if pattern not in _FROM_HF:
                raise ValueError(_unknown("Hugging Face weight", name, _FROM_HF, layer))
            ours = _FROM_HF[pattern]
            if ours == "output.weight" and self._is_tied:
                continue
            if ours in self._heads:
                tensor = _to_pairs(tensor, self._heads[ours])
            renamed[ours.format(layer)] = tensor
        return renamed

    def hf_config(self) -> dict[str, Any]:
        """``config.json`` for the exported weights."""
        return hf_config(self.model_args)


def hf_config(model_args: TransformerModelArgs) -> dict[str, Any]:
    """``config.json`` that makes transformers' LlamaForCausalLM the same model."""
    scaling = model_args.rope_scaling_args
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": model_args.dim // model_args.n_heads,
        "hidden_act": "silu",
        "hidden_size": model_args.dim,
        "intermediate_size": model_args.hidden_dim,
        "max_position_embeddings": model_args.max_seq_len,
        "mlp_bias": False,
        "num_attention_heads": model_args.n_heads,
        "num_hidden_layers": model_args.n_layers,
        "num_key_value_heads": model_args.n_kv_heads or model_args.n_heads,
        "rms_norm_eps": model_args.norm_eps,
        "rope_theta": float(model_args.rope_theta),
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.scaling_factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": (
                scaling.original_max_position_embeddings
            ),
        },
        "tie_word_embeddings": model_args.enable_weight_tying,
        "vocab_size": model_args.vocab_size,
    }


def _split(name: str) -> tuple[str, str]:
    """``layers.3.x`` to (``layers.{}.x``, ``3``); a name without a number as it is."""
    match = re.search(r"(?<=layers\.)\d+(?=\.)", name)
    if match is None:
        return name, ""
    return f"{name[: match.start()]}{{}}{name[match.end() :]}", match.group()


def _unknown(what: str, name: str, known: Iterable[str], layer: str) -> str:
    names = [pattern.format(layer) for pattern in known]
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"unknown {what} {name}" + (f" (nearest: {nearest[0]})" if nearest else "")


def _to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (head, pair, half) to (head, half, pair)."""
    return _swap_rows(weight, heads, inner=2)


def _to_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (head, half, pair) to (head, pair, half)."""
    return _swap_rows(weight, heads, inner=weight.shape[0] // heads // 2)


def _swap_rows(weight: torch.Tensor, heads: int, *, inner: int) -> torch.Tensor:
    rows, columns = weight.shape
    if rows % (2 * heads) != 0:
        raise ValueError(
            f"rotary weight of {rows} rows does not split into {heads} heads of pairs"
        )
    view = weight.reshape(heads, rows // heads // inner, inner, columns)
    return view.transpose(1, 2).reshape(rows, columns)
