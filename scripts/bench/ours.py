"""One run of our step, started by step.py: ours.py WEIGHTS OPTIONS.

Starts from the initial weights of its seed, and writes them to WEIGHTS unless the file
exists.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from measure import LEARNING_RATE, RANK, SEED, measure, tokens  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from torchtitan_cpp import _C, build  # noqa: E402
from torchtitan_cpp.config import load_config  # noqa: E402
from torchtitan_cpp.train_spec import get_train_spec  # noqa: E402
from torchtitan_cpp.world import build_world  # noqa: E402


def main() -> None:
    """Build, save the weights, run."""
    weights, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    _C.core.cpu_memory()
    config = load_config(
        [
            f"--model.flavor={options['flavor']}",
            f"--training.local_batch_size={options['batch']}",
            f"--training.seq_len={options['seq_len']}",
            f"--training.mixed_precision_param={options['dtype']}",
            "--activation_checkpoint.mode=none",
            f"--optimizer.lr={LEARNING_RATE}",
        ]
    ).config
    spec = get_train_spec("llama3")
    world = build_world(config)
    model = build.build_model(spec, config, world, accumulation=1)
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
        named = {
            "input": batch[:, :-1].contiguous(),
            "labels": batch[:, 1:].contiguous(),
        }
        result = executor.run([named], learning_rate=LEARNING_RATE, step=index + 1)
        return float(result.loss)

    measure(options, STARTED, step)
    if world.distributed:
        world.distributed.close(failed=False)


main()
