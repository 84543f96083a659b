"""Llama 3 weights under the names and in the rotary order of Hugging Face's Llama."""

from __future__ import annotations

from typing import Any

from torchtitan_cpp.checkpoint.adapter_table import HfWeight, TableStateDictAdapter
from torchtitan_cpp.models.llama3.args import TransformerModelArgs

_NAMES: dict[str, str | HfWeight] = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "layers.{}.attention.wv.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.feed_forward.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.w2.weight": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.w3.weight": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Llama3StateDictAdapter(TableStateDictAdapter):
    """Renames, and reorders the rows of wq and wk.

    With tied embeddings ``lm_head`` is neither written nor needed.
    """

    not_loaded: tuple[str, ...] = ("model.layers.{}.self_attn.rotary_emb.inv_freq",)
    model_title = "Llama 3"
    table: dict[str, str | HfWeight]

    def __init__(
        self, model_args: TransformerModelArgs, hf_assets_path: str | None
    ) -> None:
        super().__init__(model_args, hf_assets_path)
        self.table = dict(_NAMES)
        kv_heads = model_args.n_kv_heads or model_args.n_heads
        for ours, theirs, heads in (
            ("wq", "q_proj", model_args.n_heads),
            ("wk", "k_proj", kv_heads),
        ):
            self.table[f"layers.{{}}.attention.{ours}.weight"] = HfWeight(
                name=f"model.layers.{{}}.self_attn.{theirs}.weight", rotary_heads=heads
            )
        if model_args.enable_weight_tying:
            del self.table["output.weight"]
            self.not_written = ("output.weight",)
            self.not_loaded = (*self.not_loaded, "lm_head.weight")

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
