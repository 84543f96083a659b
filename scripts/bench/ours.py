"""One run of our step, started by runs.py: ours.py WEIGHTS OPTIONS.

Starts from the initial weights of its seed, and writes them to WEIGHTS unless the file
exists.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from measure import LEARNING_RATE, RANK, SEED, measure, tokens  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from torchtitan_cpp import _C, build  # noqa: E402
from torchtitan_cpp.config import load_config  # noqa: E402
from torchtitan_cpp.train_spec import get_train_spec  # noqa: E402
from torchtitan_cpp.world import build_world  # noqa: E402

DEGREES = {
    "alone": [],
    "fsdp": [],
    "tp": ["--parallelism.tensor_parallel_degree=2"],
    "cp": [
        "--parallelism.context_parallel_degree=2",
        "--parallelism.context_parallel_rotate_method=alltoall",  # around a ring
    ],
    "pp": ["--parallelism.pipeline_parallel_degree=2"],
}


def main() -> None:
    """Build, save the weights, run."""
    weights, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    _C.core.cpu_memory()
    parts = options["microbatches"]
    is_pipeline = options["layout"] == "pp"
    rows = options["batch"] // parts
    flags = [
        f"--model.flavor={options['flavor']}",
        f"--training.local_batch_size={options['batch'] if is_pipeline else rows}",
        f"--training.seq_len={options['seq_len']}",
        f"--training.mixed_precision_param={options['dtype']}",
        "--activation_checkpoint.mode=none",
        f"--optimizer.lr={LEARNING_RATE}",
        *DEGREES[options["layout"]],
    ]
    if is_pipeline:
        flags.append(f"--parallelism.pipeline_parallel_schedule={options['schedule']}")
        flags.append(f"--parallelism.pipeline_parallel_microbatch_size={rows}")
    config = load_config(flags).config
    spec = get_train_spec("llama3")
    world = build_world(config)
    model = build.build_model(
        spec, config, world, accumulation=1 if is_pipeline else parts
    )
    model.initialize(SEED)
    if RANK == 0 and not weights.exists():
        whole = {
            parameter.name: _C.nn.initial_value(parameter, SEED)
            for group in model.core.groups
            for parameter in group.parameters
        }
        save_file(whole, weights)
    optimizers = spec.build_optimizers_fn(
        [model.module], config.optimizer, world.parallel_dims, None
    )
    executor = build.build_step(model, optimizers, config, world)

    def step(index: int) -> float:
        batch = tokens(options, model.args.vocab_size, index)
        microbatches = [
            model.deal(
                {
                    "input": part[:, :-1].contiguous(),
                    "labels": part[:, 1:].contiguous(),
                }
            )
            for part in batch.chunk(parts)
        ]
        result = executor.run(microbatches, learning_rate=LEARNING_RATE, step=index + 1)
        return float(result.loss)

    def count(run: Callable[[], object]) -> dict[str, Any]:
        world.recorder.reset()
        run()
        totals = world.recorder.totals()
        return {
            "calls": {f"{axis} {verb}": t.calls for (axis, verb), t in totals.items()},
            "bytes": {f"{axis} {verb}": t.bytes for (axis, verb), t in totals.items()},
            "seconds_in_calls": sum(t.seconds for t in totals.values()),
        }

    measure(options, STARTED, step, count)
    if world.distributed:
        world.distributed.close(failed=False)


main()
