"""One run of torchtitan's own Transformer, started by runs.py: peer.py WEIGHTS OPTIONS.

Layouts (peer_layouts.py), loss, clipping and the fused AdamW are what its trainer does;
in the mode compile blocks are compiled one by one as there, and there is no activation
checkpointing.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from importlib import import_module  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from measure import LEARNING_RATE, measure, tokens  # noqa: E402
from peer_layouts import make_layout  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

_NO_CALLS = ("wait_tensor", "_wrap_tensor_autograd")
"""Operations of torch's namespaces for collectives that start none."""


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
    layout = make_layout(model, args, options)
    parameters = [p for part in layout.parts for p in part.parameters()]
    clip = import_module("torchtitan.distributed.utils").clip_grad_norm_
    optimizer = torch.optim.AdamW(
        parameters,
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        fused=True,
    )

    def step(index: int) -> float:
        batch = tokens(options, args.vocab_size, index)
        optimizer.zero_grad()
        loss = layout.forward_backward(
            batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        )
        clip(parameters, 1.0, foreach=True, pp_mesh=layout.pp_mesh)
        optimizer.step()
        return layout.of_all_ranks(loss)

    measure(options, STARTED, step, _count)
    if options["ranks"] > 1:
        dist.destroy_process_group()


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched to process groups; waiting is no call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # DTensor first: its own collectives are seen then
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name not in _NO_CALLS:
            self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _count(run: Callable[[], object]) -> dict[str, Any]:
    with _Calls() as counter:
        run()
    return {"calls": counter.calls}


main()
