"""Arguments of Llama 3 models and the flavors by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.logging import logger
from torchtitan_cpp.models.protocol import BaseModelArgs


@dataclass
class RoPEScalingArgs:
    """Stretching of the rotary wavelengths, as introduced by Llama 3.1."""

    scaling_factor: float = 8.0
    """How far long wavelengths are stretched."""
    low_freq_factor: float = 1.0
    """Wavelengths above the original context / this are stretched whole."""
    high_freq_factor: float = 4.0
    """Wavelengths below the original context / this are kept."""
    original_max_position_embeddings: int = 8192
    """Tokens of the context before stretching."""


@dataclass
class TransformerModelArgs(BaseModelArgs):
    """Sizes of a Llama 3 model."""

    dim: int = 4096
    """Width of the residual stream."""
    n_layers: int = 32
    n_heads: int = 32
    """Query heads; ``dim / n_heads`` is the head dim."""
    n_kv_heads: int | None = None
    """Key and value heads; None: as many as query heads."""
    vocab_size: int = 128256
    multiple_of: int = 256
    """The feed-forward width is rounded up to a multiple of this."""
    ffn_dim_multiplier: float | None = None
    """Scales the feed-forward width, which is 8/3 dim otherwise."""
    norm_eps: float = 1e-5
    rope_theta: float = 10000
    """Base of the rotary frequencies."""
    rope_scaling_args: RoPEScalingArgs | None = field(default_factory=RoPEScalingArgs)
    """None: the rotary frequencies are not scaled."""
    max_seq_len: int = 131072
    """Longest sequence, in tokens."""
    depth_init: bool = True
    """Initial deviation of block outputs falls with depth, else is the same."""
    attn_type: str = "sdpa"
    """"sdpa", "flex" or "varlen": names of torchtitan's for one kernel here."""
    attn_mask_type: str = "causal"
    """"causal", or with flex and varlen "block_causal": within documents."""
    eos_id: int = 0
    """Token that ends a document; a run takes that of its tokenizer."""
    enable_weight_tying: bool = False
    """The output layer uses the embedding's weight."""

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layer."""
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of

    @property
    def masks_documents(self) -> bool:
        """Whether attention stays within documents."""
        return self.attn_mask_type == "block_causal"

    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        seq_len = job_config.training.seq_len
        if seq_len > self.max_seq_len:
            logger.warning(
                "training.seq_len = %d exceeds the model's maximum of %d tokens",
                seq_len,
                self.max_seq_len,
            )
        self.max_seq_len = seq_len

    def find_misfits(self, job_config: Any) -> dict[str, str]:
        misfits = {}
        length, validation = job_config.training.seq_len, job_config.validation
        if validation.enable and validation.seq_len > length:
            misfits["validation.seq_len"] = (
                f"expected at most training.seq_len = {length}, the positions that the "
                f"model is built for; found {validation.seq_len}"
            )
        try:
            core = self.to_core()
        except ValueError:
            return misfits  # of no degree; told where the model is built
        parallelism = job_config.parallelism
        degree = parallelism.tensor_parallel_degree
        if misfit := _C.models.llama.tensor_parallel_misfit(core, degree):
            misfits["parallelism.tensor_parallel_degree"] = misfit
        elif context_misfit := self._context_misfit(parallelism):
            misfits["parallelism.context_parallel_degree"] = context_misfit
        return misfits

    def _context_misfit(self, parallelism: Any) -> str | None:
        """Why ranks cannot exchange heads for tokens."""
        degree = parallelism.context_parallel_degree
        heads = (self.n_kv_heads or self.n_heads) // parallelism.tensor_parallel_degree
        method = parallelism.context_parallel_rotate_method
        if method != "ulysses" or heads % degree == 0:
            return None
        fits = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        return (
            f"expected a divisor of the {heads} key heads of a tensor rank "
            f"({', '.join(fits)}) with context_parallel_rotate_method 'ulysses', found "
            f"{degree}"
        )

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        core = self.to_core()
        return core.num_params(), core.flops_per_token(seq_len)

    def to_core(self) -> _C.models.llama.Args:
        """The same sizes for the C++ model.

        Raises:
            ValueError: for sizes, or an attention and a mask, that do not fit
                together.
        """
        masks = {"sdpa": ("causal",)} | dict.fromkeys(
            ("flex", "varlen"), ("causal", "block_causal")
        )
        if self.attn_mask_type not in masks.get(self.attn_type, ()):
            raise ValueError(
                f"attn_type {self.attn_type!r} with attn_mask_type "
                f"{self.attn_mask_type!r}: expected 'sdpa' with 'causal', or 'flex' or "
                "'varlen' with 'causal' or 'block_causal'"
            )
        scaling = self.rope_scaling_args
        return _C.models.llama.Args(
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_heads if self.n_kv_heads is None else self.n_kv_heads,
            vocab_size=self.vocab_size,
            hidden_dim=self.hidden_dim,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=None
            if scaling is None
            else _C.models.llama.RopeScaling(
                factor=scaling.scaling_factor,
                low_freq_factor=scaling.low_freq_factor,
                high_freq_factor=scaling.high_freq_factor,
                original_context=scaling.original_max_position_embeddings,
            ),
            max_seq_len=self.max_seq_len,
            depth_init=self.depth_init,
            tied_embeddings=self.enable_weight_tying,
            document_masks=self.masks_documents,
        )


def _debug(**kwargs: Any) -> TransformerModelArgs:
    return TransformerModelArgs(
        dim=256, n_layers=6, n_heads=16, vocab_size=2048, rope_theta=500000, **kwargs
    )


def _8b(**kwargs: Any) -> TransformerModelArgs:
    return TransformerModelArgs(
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        ffn_dim_multiplier=1.3,
        multiple_of=1024,
        rope_theta=500000,
        **kwargs,
    )


llama3_args: dict[str, TransformerModelArgs] = {
    "debugmodel": _debug(),
    "debugmodel_flex_attn": _debug(attn_type="flex", attn_mask_type="block_causal"),
    "debugmodel_varlen_attn": _debug(attn_type="varlen", attn_mask_type="block_causal"),
    "1B": TransformerModelArgs(
        dim=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        ffn_dim_multiplier=1.5,
        multiple_of=256,
        rope_theta=500000,
        rope_scaling_args=RoPEScalingArgs(scaling_factor=32.0),
        enable_weight_tying=True,
    ),
    "3B": TransformerModelArgs(
        dim=3072,
        n_layers=28,
        n_heads=24,
        n_kv_heads=8,
        ffn_dim_multiplier=1.0,
        multiple_of=256,
        rope_theta=500000,
        rope_scaling_args=RoPEScalingArgs(scaling_factor=32.0),
        enable_weight_tying=True,
    ),
    "8B": _8b(),
    "8B_flex": _8b(attn_type="flex", attn_mask_type="block_causal"),
    "8B_varlen": _8b(attn_type="varlen", attn_mask_type="block_causal"),
    "70B": TransformerModelArgs(
        dim=8192,
        n_layers=80,
        n_heads=64,
        n_kv_heads=8,
        ffn_dim_multiplier=1.3,
        multiple_of=4096,
        rope_theta=500000,
    ),
    "405B": TransformerModelArgs(
        dim=16384,
        n_layers=126,
        n_heads=128,
        n_kv_heads=8,
        ffn_dim_multiplier=1.2,
        multiple_of=4096,
        rope_theta=500000,
    ),
}
