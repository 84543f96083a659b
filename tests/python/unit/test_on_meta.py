"""Building on meta draws nothing and does not load torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from torchtitan_cpp.nn.on_meta import on_meta

LAYERS = (
    "nn.Embedding(3, 4), nn.Linear(4, 4), nn.Conv1d(2, 2, 1), "
    "nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8)"
)


def test_what_is_not_on_meta_is_filled() -> None:
    with on_meta():
        torch.manual_seed(3)
        weight = nn.Linear(4, 4, device="cpu").weight
        drawn = torch.zeros(5, device="cpu").normal_()
        nn.init.constant_(weight[0].detach(), 7.0)
    torch.manual_seed(3)
    expected = nn.Linear(4, 4).weight
    assert torch.equal(weight[1:], expected[1:])
    assert torch.equal(weight[0], torch.full((4,), 7.0))
    assert torch.equal(drawn, torch.zeros(5).normal_())


def test_what_is_on_meta_keeps_its_shape_and_takes_no_number() -> None:
    before = torch.get_rng_state()
    with on_meta():
        weights = [nn.Linear(4, 3).weight, nn.init.normal_(torch.empty(3, 4))]
        weights += [torch.empty(3, 4).uniform_(0, 1), nn.init.zeros_(torch.ones(3, 4))]
        trained = torch.empty(3, 4).mul_(2)
    assert all(each.is_meta and each.shape == (3, 4) for each in (*weights, trained))
    assert torch.equal(before, torch.get_rng_state())


def test_building_on_meta_does_not_load_the_compiler() -> None:
    program = f"""
import sys
from torch import nn
from torchtitan_cpp.nn.on_meta import on_meta
with on_meta():
    layers = [{LAYERS}]
print(len(layers), "torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "5 False\n"
