"""Llama 3 under Hugging Face's names, against transformers itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_ranks import Grid, is_box_of, results, run_ranks, state_of

from torchtitan_cpp.checkpoint import CheckpointManager, SingleRank, TrainingState
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.models.llama3.args import RoPEScalingArgs, TransformerModelArgs
from torchtitan_cpp.models.llama3.state_dict_adapter import (
    Llama3StateDictAdapter,
    hf_config,
)

ARGS = TransformerModelArgs(
    dim=48,
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    vocab_size=67,
    multiple_of=16,
    max_seq_len=64,
    rope_theta=5000,
    rope_scaling_args=None,
)
SCALED = RoPEScalingArgs(
    scaling_factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=2.0,
    original_max_position_embeddings=16,
)
VARIANTS = {
    "grouped": ARGS,
    "all heads": replace(ARGS, n_kv_heads=None, ffn_dim_multiplier=1.3),
    "scaled": replace(ARGS, rope_scaling_args=SCALED),
    "tied": replace(ARGS, enable_weight_tying=True),
}


def weights(args: TransformerModelArgs) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    kv_dim = args.dim // args.n_heads * (args.n_kv_heads or args.n_heads)
    shapes = {"tok_embeddings.weight": (args.vocab_size, args.dim)}
    for i in range(args.n_layers):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (args.dim, args.dim),
            f"layers.{i}.attention.wk.weight": (kv_dim, args.dim),
            f"layers.{i}.attention.wv.weight": (kv_dim, args.dim),
            f"layers.{i}.attention.wo.weight": (args.dim, args.dim),
            f"layers.{i}.feed_forward.w1.weight": (args.hidden_dim, args.dim),
            f"layers.{i}.feed_forward.w2.weight": (args.dim, args.hidden_dim),
            f"layers.{i}.feed_forward.w3.weight": (args.hidden_dim, args.dim),
            f"layers.{i}.attention_norm.weight": (args.dim,),
            f"layers.{i}.ffn_norm.weight": (args.dim,),
        }
    shapes["norm.weight"] = (args.dim,)
    if not args.enable_weight_tying:
        shapes["output.weight"] = (args.vocab_size, args.dim)
    return {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotations(args: TransformerModelArgs, length: int) -> torch.Tensor:
    """Complex [length, head_dim / 2], wavelengths stretched as in Llama 3.1."""
    head_dim = args.dim // args.n_heads
    frequencies = args.rope_theta ** (-torch.arange(0, head_dim, 2) / head_dim)
    scaling = args.rope_scaling_args
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * frequencies / (2 * torch.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling.scaling_factor)
    angles = torch.outer(torch.arange(length), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def logits(
    args: TransformerModelArgs, w: dict[str, torch.Tensor], tokens: torch.Tensor
) -> torch.Tensor:
    """The model written down plainly: neighbours form a rotated pair."""
    batch, length = tokens.shape
    heads, kv_heads = args.n_heads, args.n_kv_heads or args.n_heads

    def split(x: torch.Tensor, number: int) -> torch.Tensor:
        return x.view(batch, length, number, -1)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        turned = pairs * rotations(args, length)[:, None]
        return torch.view_as_real(turned).flatten(-2)

    h = w["tok_embeddings.weight"][tokens]
    for i in range(args.n_layers):
        p = f"layers.{i}."
        x = rms_norm(h, w[p + "attention_norm.weight"], args.norm_eps)
        q = rotate(split(x @ w[p + "attention.wq.weight"].T, heads))
        k = rotate(split(x @ w[p + "attention.wk.weight"].T, kv_heads))
        v = split(x @ w[p + "attention.wv.weight"].T, kv_heads)
        k, v = (t.repeat_interleave(heads // kv_heads, 2) for t in (k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        h = h + mixed.transpose(1, 2).flatten(2) @ w[p + "attention.wo.weight"].T
        x = rms_norm(h, w[p + "ffn_norm.weight"], args.norm_eps)
        gate = torch.nn.functional.silu(x @ w[p + "feed_forward.w1.weight"].T)
        up = x @ w[p + "feed_forward.w3.weight"].T
        h = h + (gate * up) @ w[p + "feed_forward.w2.weight"].T
    out = w.get("output.weight", w["tok_embeddings.weight"])
    return rms_norm(h, w["norm.weight"], args.norm_eps) @ out.T


def manager(folder: Path, settings: Checkpoint, args: Any, **kwargs: Any) -> Any:
    arguments = {"ranks": SingleRank(), "base_folder": str(folder)} | kwargs
    adapter = Llama3StateDictAdapter(args, None)
    return CheckpointManager(settings, adapter=adapter, **arguments)


def export(
    folder: Path, args: TransformerModelArgs, grid: Grid, export_dtype: Any = "float32"
) -> str:
    settings = Checkpoint(enable=True, last_save_in_hf=True, export_dtype=export_dtype)

    def save(ranks: Any) -> str:
        state = state_of(weights(args), grid, ranks.rank)
        run = manager(folder, settings, args, ranks=ranks)
        path: str = run.save(20, state, last_step=True)
        return path

    return str(results(run_ranks(grid.world_size, save))[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_an_exported_folder_and_gives_the_same_logits(
    variant: str, tmp_path: Path
) -> None:
    args = VARIANTS[variant]
    path = export(tmp_path, args, Grid(rows=2, replicas=2))
    model, info = transformers.LlamaForCausalLM.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind]
    tokens = torch.randint(0, args.vocab_size, (2, 40), generator=torch.manual_seed(0))
    with torch.no_grad():
        theirs = model.eval()(tokens).logits
    ours = logits(args, weights(args), tokens)
    assert (theirs - ours).abs().max() <= 2e-5 * max(1.0, float(ours.abs().max()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_shard_size", ["50GB", "20KB"])
def test_a_folder_that_transformers_wrote_loads_into_every_rank(
    variant: str, max_shard_size: str, tmp_path: Path
) -> None:
    args = VARIANTS[variant]
    path = export(tmp_path, args, Grid())
    model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    settings = Checkpoint(
        enable=True,
        folder="new",
        initial_load_in_hf=True,
        initial_load_path=str(tmp_path / "theirs"),
    )

    def load(ranks: Any) -> None:
        state = state_of(weights(args), Grid(rows=3), ranks.rank, zeros=True)
        loaded = manager(tmp_path, settings, args, ranks=ranks).load(state)
        assert (loaded.step, loaded.scalars) == (0, {})
        assert all(is_box_of(e, weights(args)[e.name]) for e in state.tensors)

    results(run_ranks(3, load))


def test_weights_are_exported_in_the_dtype_asked_for(tmp_path: Path) -> None:
    path = export(tmp_path, ARGS, Grid(rows=2), "bfloat16")
    config = json.loads((Path(path) / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    model = transformers.LlamaForCausalLM.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    settings = Checkpoint(enable=True, folder="new", initial_load_in_hf=True)
    state = state_of(weights(ARGS), Grid(), 0, zeros=True)
    manager(tmp_path, settings, ARGS, hf_assets_path=path).load(state)
    for entry in state.tensors:
        assert torch.equal(entry.local, weights(ARGS)[entry.name].bfloat16().float())


def test_an_exported_folder_is_not_resumed_from_and_says_what_it_is(
    tmp_path: Path,
) -> None:
    path = export(tmp_path, ARGS, Grid())
    state = state_of(weights(ARGS), Grid(), 0)
    with pytest.raises(RuntimeError, match="weights for Hugging Face only"):
        manager(tmp_path, Checkpoint(enable=True), ARGS).load(state)
    settings = Checkpoint(enable=True, folder="new", initial_load_path=path)
    with pytest.raises(ValueError, match="set checkpoint.initial_load_in_hf"):
        manager(tmp_path, settings, ARGS).load(state)


def test_both_directions_are_inverse_and_tied_output_is_left_out() -> None:
    adapter = Llama3StateDictAdapter(ARGS, None)
    there = adapter.to_hf(weights(ARGS))
    back = adapter.from_hf(there | {"model.layers.0.self_attn.rotary_emb.inv_freq": 0})
    assert back.keys() == weights(ARGS).keys()
    assert all(torch.equal(back[n], t) for n, t in weights(ARGS).items())
    tied = Llama3StateDictAdapter(VARIANTS["tied"], None)
    assert "lm_head.weight" not in tied.to_hf(weights(ARGS))
    assert "output.weight" not in tied.from_hf(there)


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    adapter = Llama3StateDictAdapter(ARGS, None)
    with pytest.raises(ValueError, match=r"nearest: layers.1.attention.wq.weight"):
        adapter.to_hf({"layers.1.attention.wqq.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"nearest: model.norm.weight"):
        adapter.from_hf({"model.norms.weight": torch.zeros(1)})


def load_from(
    folder: Path, tmp_path: Path, args: TransformerModelArgs
) -> TrainingState:
    settings = Checkpoint(
        enable=True,
        folder="new",
        initial_load_in_hf=True,
        initial_load_path=str(folder),
    )
    state = state_of(weights(args), Grid(), 0, zeros=True)
    manager(tmp_path, settings, args).load(state)
    return state


def test_a_folder_that_lacks_weights_or_has_other_shapes_is_refused(
    tmp_path: Path,
) -> None:
    tied = export(tmp_path / "tied", VARIANTS["tied"], Grid())
    with pytest.raises(ValueError, match="does not hold output.weight"):
        load_from(Path(tied), tmp_path, ARGS)
    small = export(tmp_path / "small", replace(ARGS, vocab_size=66), Grid())
    with pytest.raises(ValueError, match=r"has the shape .66, 48., the model .67, 48."):
        load_from(Path(small), tmp_path, ARGS)
    deep = export(tmp_path / "deep", replace(ARGS, n_layers=3), Grid())
    with pytest.raises(ValueError, match="which the model does not have"):
        load_from(Path(deep), tmp_path, ARGS)


def test_the_split_into_files_follows_the_index_of_the_original(tmp_path: Path) -> None:
    names = list(Llama3StateDictAdapter(ARGS, None).to_hf(weights(ARGS)))
    files = {
        n: f"model-0000{1 + (i % 3)}-of-00003.safetensors" for i, n in enumerate(names)
    }
    (tmp_path / "assets").mkdir()
    index = tmp_path / "assets/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    adapter = Llama3StateDictAdapter(ARGS, str(tmp_path / "assets"))
    settings = Checkpoint(enable=True, last_save_in_hf=True)
    run = CheckpointManager(
        settings, adapter=adapter, ranks=SingleRank(), base_folder=str(tmp_path)
    )
    path = run.save(5, state_of(weights(ARGS), Grid(), 0), last_step=True)
    written = json.loads((Path(path) / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == files


def test_the_config_names_every_size() -> None:
    config = hf_config(VARIANTS["scaled"])
    assert config["intermediate_size"] == 128
    assert config["num_key_value_heads"] == 2
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["rope_scaling"]["factor"] == 4.0
    assert config["tie_word_embeddings"] is False
