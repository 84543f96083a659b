"""Flops and parameters of known models, and the peak table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torchtitan_cpp.metrics import get_dense_model_nparams_and_flops
from torchtitan_cpp.metrics.flops import dense_flops_per_token
from torchtitan_cpp.metrics.peak_flops import get_peak_flops

DEBUGMODEL = SimpleNamespace(dim=256, n_layers=6, n_heads=16)


def transformer(
    *, dim: int, layers: int, hidden: int, vocabulary: int, kv_dim: int
) -> nn.Module:
    """Llama 3's parameter shapes on the meta device."""

    def layer() -> nn.Module:
        return nn.ModuleList(
            [
                nn.Linear(dim, dim, bias=False),
                nn.Linear(dim, kv_dim, bias=False),
                nn.Linear(dim, kv_dim, bias=False),
                nn.Linear(dim, dim, bias=False),
                nn.Linear(dim, hidden, bias=False),
                nn.Linear(hidden, dim, bias=False),
                nn.Linear(dim, hidden, bias=False),
                nn.RMSNorm(dim),
                nn.RMSNorm(dim),
            ]
        )

    with torch.device("meta"):
        model = nn.Module()
        model.tok_embeddings = nn.Embedding(vocabulary, dim)
        model.layers = nn.ModuleList(layer() for _ in range(layers))
        model.norm = nn.RMSNorm(dim)
        model.output = nn.Linear(dim, vocabulary, bias=False)
    return model


def debugmodel() -> nn.Module:
    return transformer(dim=256, layers=6, hidden=768, vocabulary=2048, kv_dim=256)


def test_debugmodel() -> None:
    params, flops = get_dense_model_nparams_and_flops(
        DEBUGMODEL, debugmodel(), 2 * 16, 2048
    )
    assert params == 6_163_712
    assert flops == 6 * (6_163_712 - 2048 * 256) + 6 * 6 * 16 * 32 * 2048


def test_llama_3_8b() -> None:
    args = SimpleNamespace(n_layers=32, n_heads=32)
    model = transformer(
        dim=4096, layers=32, hidden=14336, vocabulary=128256, kv_dim=1024
    )
    params, flops = get_dense_model_nparams_and_flops(args, model, 2 * 128, 8192)
    assert params == 8_030_261_248
    assert flops == 6 * (8_030_261_248 - 128256 * 4096) + 6 * 32 * 32 * 256 * 8192


def test_embedding_without_torchs_class_is_found_by_its_name() -> None:
    model = debugmodel()
    weight = model.tok_embeddings.weight
    model.tok_embeddings = nn.ParameterDict({"weight": weight})
    expected = get_dense_model_nparams_and_flops(DEBUGMODEL, debugmodel(), 32, 2048)
    assert get_dense_model_nparams_and_flops(DEBUGMODEL, model, 32, 2048) == expected


def test_tied_weights_count_once_but_are_multiplied() -> None:
    untied = get_dense_model_nparams_and_flops(DEBUGMODEL, debugmodel(), 32, 2048)
    expected = (untied[0] - 2048 * 256, untied[1])

    one_tensor = debugmodel()
    one_tensor.output.weight = one_tensor.tok_embeddings.weight
    assert (
        get_dense_model_nparams_and_flops(DEBUGMODEL, one_tensor, 32, 2048) == expected
    )

    announced = SimpleNamespace(n_layers=6, n_heads=16, enable_weight_tying=True)
    assert (
        get_dense_model_nparams_and_flops(announced, debugmodel(), 32, 2048) == expected
    )


def test_flops_are_exact_integers_for_the_largest_model() -> None:
    flops = dense_flops_per_token(
        matmul_params=403_000_000_001,
        n_layers=126,
        n_heads=128,
        head_dims=256,
        seq_len=131072,
    )
    assert flops == 6 * 403_000_000_001 + 6 * 126 * 128 * 256 * 131072


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA L40S", 362e12),
        ("AMD Instinct MI300X", 1300e12),
        ("AMD Instinct MI250X", 191.5e12),
        ("AMD EPYC 7763", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak_of_a_device(name: str, flops: float | None) -> None:
    assert get_peak_flops(name) == flops
