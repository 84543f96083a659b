"""The command: a prompt in, text out, with its speed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from torchtitan_cpp.config import ConfigError, Debug
from torchtitan_cpp.determinism import set_determinism
from torchtitan_cpp.errors import needs_traceback
from torchtitan_cpp.generation.generate import Generation, LoadedModel, generate
from torchtitan_cpp.generation.loading import (
    divided_by_tensor_axis,
    load_on_rank,
    read_model_config,
)
from torchtitan_cpp.logging import init_logger
from torchtitan_cpp.metrics.memory import MemoryMonitor, build_memory_monitor
from torchtitan_cpp.parallel import EXIT_RANK_LOST, CollectiveError
from torchtitan_cpp.refusal import EXIT_BAD_INPUT, refuse
from torchtitan_cpp.world import World, build_world, find_world_size

_RED, _BLUE, _RESET = "\033[31m", "\033[34m", "\033[39m"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, generate, print; the exit code.

    Args:
        argv: None: the flags of this process.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    own, others = _parser().parse_known_args(flags)
    if own.config is not None:
        others = ["--job.config_file", own.config, *others]
    if problems := _problems(own):
        return refuse("\n".join(problems))
    try:
        # Other values than of the model are left as they are: nothing is trained.
        config = read_model_config(others)
        ranks = find_world_size(config)
        config = divided_by_tensor_axis(config, ranks=ranks)
    except (ConfigError, ValueError) as error:
        return refuse(str(error))
    world: World | None = None
    try:
        world = build_world(config)
        init_logger(world.rank, stream=sys.stderr)
        set_determinism(Debug(seed=own.seed, deterministic=own.deterministic))
        model = load_on_rank(
            config, world, own.checkpoint, dtype=getattr(torch, own.dtype)
        )
        memory = build_memory_monitor(world.device)
        made = _generate(model, own)
    except Exception as error:
        return _fail(world, error)
    if world.rank == 0:
        _show(made, own, memory, ranks)
    if world.distributed:
        world.distributed.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate.py",
        usage="%(prog)s [options] [flags of torchtitan_cpp.train]",
        description="Generates text with a trained model. Under torchrun its ranks "
        "divide the model among them (tensor parallel); what a configuration says of "
        "parallelism, data and training has no meaning here.",
        epilog="Flags of torchtitan_cpp.train choose the model, the tokenizer and the "
        "longest sequence: --model.flavor, --model.hf_assets_path, --training.seq_len.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="TOML", help="configuration; default: the debug job's")
    add(
        "--checkpoint",
        metavar="FOLDER",
        help="a checkpoint, a folder of several (the last one saved is taken), or a "
        "Hugging Face model; default: checkpoint in the configuration's dump_folder",
    )
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to go on from, or a file that holds it; may be given several times",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="divides the logits; 0 takes the most likely token (default: %(default)s)",
    )
    add(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        default=32,
        help="at most, for each text (default: %(default)s)",
    )
    add(
        "--batch_size",
        "--batch-size",
        type=int,
        default=1,
        help="texts for each prompt (default: %(default)s)",
    )
    add("--top_k", "--top-k", type=int, help="choose among the k most likely tokens")
    add("--seed", type=int, help="of random tokens; default: another one each time")
    add(
        "--deterministic",
        action="store_true",
        help="use algorithms that give the same bits in every run",
    )
    add(
        "--ignore_eos",
        "--ignore-eos",
        action="store_true",
        help="go on behind tokens that end a text",
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float64"],
        default="float32",
        help="of weights and cache (default: %(default)s)",
    )
    add("--out", action="store_true", help="print a report as JSON, and nothing else")
    return parser


def _problems(own: argparse.Namespace) -> list[str]:
    """What is wrong with the options; to load a model takes longer than to say it."""
    found = [
        f"--{name}: expected at least 1, found {value}"
        for name in ("batch_size", "max_new_tokens", "top_k")
        if (value := getattr(own, name)) is not None and value < 1
    ]
    if not 0 <= own.temperature < math.inf:
        found.append(
            f"--temperature: expected a number of at least 0, found {own.temperature}"
        )
    if own.seed is not None and not -(2**63) <= own.seed < 2**64:
        found.append(f"--seed: expected a number of 64 bits, found {own.seed}")
    return found


def _generate(model: LoadedModel, own: argparse.Namespace) -> Generation:
    texts = [_text(prompt) for prompt in own.prompt or [""]]
    return generate(
        model,
        [text for text in texts for _ in range(own.batch_size)],
        max_new_tokens=own.max_new_tokens,
        temperature=own.temperature,
        top_k=own.top_k,
        seed=own.seed,
        stop_ids=() if own.ignore_eos else None,
    )


def _text(prompt: str) -> str:
    """Of the file, if it is one."""
    try:
        is_file = os.path.isfile(prompt)
    except ValueError:  # no path
        is_file = False
    if not is_file:
        return prompt
    with open(prompt, encoding="utf-8") as file:
        return file.read()


def _show(
    made: Generation, own: argparse.Namespace, memory: MemoryMonitor, ranks: int
) -> None:
    if own.out:
        print(json.dumps(_report(made, memory, ranks), indent=4))
        return
    red, blue, reset = (_RED, _BLUE, _RESET) if sys.stdout.isatty() else ("", "", "")
    for prompt, text in zip(made.prompt_texts or [], made.texts or [], strict=True):
        print(f"{red}{prompt}{blue}{text}{reset}\n")
    print(f"seed {made.seed}: {made.speed}")


def _report(made: Generation, memory: MemoryMonitor, ranks: int) -> dict[str, Any]:
    """torchtitan's keys, and how long the prompts took."""
    num_read = sum(len(prompt) for prompt in made.prompts)
    pairs = zip(made.prompt_texts or [], made.texts or [], strict=True)
    return {
        "metadata": {
            "generated_n_tokens": max(len(tokens) for tokens in made.tokens),
            "input_n_tokens": max(len(prompt) for prompt in made.prompts),
            "generation_time_sec": made.seconds,
            "tokens_per_sec": (num_read + made.num_new_tokens) / made.seconds,
            "new_tokens_per_sec": made.tokens_per_second,
            "prompt_time_sec": made.prompt_seconds,
            "batch_size": len(made.prompts),
            "seed": made.seed,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
            **memory.get_peak_stats().as_metrics(),
            "world_size": ranks,
            "torch_version": torch.__version__,
        },
        "responses": [
            {"response_idx": index, "input_text": prompt, "output_text": text}
            for index, (prompt, text) in enumerate(pairs)
        ],
    }


def _fail(world: World | None, error: Exception) -> int:
    is_lost = isinstance(error, CollectiveError)
    if needs_traceback(error) and not isinstance(error, (ValueError, CollectiveError)):
        traceback.print_exc()
    elif world is None or world.parallel_dims.world_size == 1:
        print(error, file=sys.stderr)
    code = EXIT_RANK_LOST if is_lost else EXIT_BAD_INPUT
    if world is None or world.distributed is None or world.parallel_dims.tp == 1:
        return code
    line = world.distributed.report_failure(error)
    print(line, file=sys.stderr, flush=True)
    world.distributed.close(failed=True)
    sys.stdout.flush()
    # A collective may still wait in a thread of the library: nothing is torn down.
    os._exit(code)
