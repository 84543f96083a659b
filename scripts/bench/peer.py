"""One run of torchtitan's own Transformer, started by step.py: peer.py WEIGHTS OPTIONS.

Loss, clipping, the fused AdamW and, with more than one rank, FSDP2 are what its trainer
does; blocks are compiled one by one as there, and there is no activation checkpointing.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from contextlib import AbstractContextManager, nullcontext  # noqa: E402
from importlib import import_module  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.device_mesh  # noqa: E402
import torch.distributed.fsdp as fsdp  # noqa: E402
from measure import LEARNING_RATE, measure, tokens  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def main() -> None:
    """Build, load the weights, run."""
    weights, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    llama = import_module("torchtitan.models.llama3")
    args = llama.llama3_args[options["flavor"]]
    args.max_seq_len = options["seq_len"]
    model = llama.Transformer(args)
    with torch.no_grad():
        model.init_weights()
    model.load_state_dict(load_file(weights), strict=False)
    loss_of = _loss
    if options["mode"] == "compile":
        for block in model.layers.values():
            block.compile(fullgraph=True)
        loss_of = torch.compile(_loss)
    ranks = options["ranks"]
    if ranks > 1:
        _fully_shard(model, ranks, getattr(torch, options["dtype"]))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        fused=True,
    )

    def precision() -> AbstractContextManager[object]:
        # Where FSDP runs it casts the parameters, without autocast.
        if options["dtype"] == "float32" or ranks > 1:
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def step(index: int) -> float:
        batch = tokens(options, args.vocab_size, index)
        optimizer.zero_grad()
        with precision():
            logits = model(batch[:, :-1].contiguous())
            loss = loss_of(logits, batch[:, 1:].contiguous()) / ranks
        del logits
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        loss = loss.detach()
        if ranks > 1:
            dist.all_reduce(loss)
        return float(loss)

    measure(options, STARTED, step)
    if ranks > 1:
        dist.destroy_process_group()


def _fully_shard(model: torch.nn.Module, ranks: int, dtype: torch.dtype) -> None:
    """As torchtitan does. The gradients of all ranks are summed."""
    parallelize = import_module("torchtitan.models.llama3.infra.parallelize")
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    parallelize.apply_fsdp(
        model, mesh, param_dtype=dtype, reduce_dtype=torch.float32, pp_enabled=False
    )
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            # Gloo has no sum that scales, which it would use for a factor of 1.
            module.set_force_sum_reduction_for_comms(True)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(0, 1)
    )


main()
