"""``python -m torchtitan_cpp.checkpoint.convert``: the same checkpoint, another format.

One tensor is in memory at a time. What is written is committed as any save is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from torchtitan_cpp.checkpoint.convert_hugging_face import (
    from_hugging_face,
    to_hugging_face,
)
from torchtitan_cpp.checkpoint.convert_native import convert_checkpoint
from torchtitan_cpp.config import ConfigError, load_config
from torchtitan_cpp.logging import init_logger, logger
from torchtitan_cpp.model_choice import load_config_of_model

EXIT_BAD_INPUT = 2

_COMMANDS = {
    "to-native": "a checkpoint of torch (DCP), such as torchtitan's, into one of ours",
    "to-dcp": "a checkpoint of ours into one that torchtitan reads",
    "to-hf": "the weights of a checkpoint, ours or torch's, into a model folder that "
    "transformers loads",
    "from-hf": "a Hugging Face model folder into a checkpoint of weights",
}
_RUN_FLAGS = (
    "takes all flags of torchtitan_cpp.train besides: the optimizer and schedule of "
    "the run, which torchtitan reads from its checkpoints"
)
_MODEL_FLAGS = (
    "takes all flags of torchtitan_cpp.train besides, such as --job.config_file: which "
    "model it is. Shapes are those of the flavor, or of the run whose "
    "--training.seq_len is given"
)
# Names that torchtitan's scripts have, and ours.
_TORCHTITAN_FLAGS = {
    "model_name": "model.name",
    "model_flavor": "model.flavor",
    "hf_assets_path": "model.hf_assets_path",
    "export_dtype": "checkpoint.export_dtype",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, convert, tell; the exit code."""
    own, flags = _parser().parse_known_args(argv)
    handler = init_logger(stream=sys.stderr)
    try:
        print(_run(own, flags))
    except (ConfigError, ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    finally:
        logger.removeHandler(handler)
    return 0


def _run(own: argparse.Namespace, flags: list[str]) -> str:
    if own.command in ("to-native", "to-dcp"):
        to_dcp = own.command == "to-dcp"
        if flags and (own.weights_only or not to_dcp):
            raise ValueError(f"{flags[0]} has no effect here")
        return convert_checkpoint(
            own.source,
            own.folder,
            load_config(flags).config,
            to_dcp=to_dcp,
            weights_only=own.weights_only,
            data_ranks=own.data_ranks if to_dcp else 1,
        )
    for name, field in _TORCHTITAN_FLAGS.items():
        value = getattr(own, name, None)
        flags += [] if value is None else [f"--{field}={value}"]
    loaded = load_config_of_model(flags)
    if own.command == "to-hf":
        return to_hugging_face(own.source, own.result, loaded)
    return from_hugging_face(own.source, own.result, loaded, format=own.format)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchtitan_cpp.checkpoint.convert",
        description="Turns a checkpoint into another format, a tensor at a time.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {
        name: commands.add_parser(
            name, help=text, description=f"{name}: {text}.", allow_abbrev=False
        )
        for name, text in _COMMANDS.items()
    }
    for name in ("to-native", "to-dcp"):
        command = parsers[name]
        command.add_argument(
            "source", help="folder of one checkpoint, of either format: .../step-100"
        )
        command.add_argument(
            "folder", help="folder of checkpoints; the result is its step-N"
        )
        command.add_argument(
            "--weights-only", action="store_true", help="leave out all but the weights"
        )
    parsers["to-dcp"].add_argument(
        "--data-ranks",
        type=int,
        default=1,
        help="data parallel degree of the torchtitan run that is to go on from the "
        "result (it reads no other; or exclude its dataloader from loading)",
    )
    parsers["to-dcp"].epilog = f"to-dcp {_RUN_FLAGS}"
    _add_hugging_face(parsers)
    return parser


def _add_hugging_face(parsers: dict[str, argparse.ArgumentParser]) -> None:
    to_hf, from_hf = parsers["to-hf"], parsers["from-hf"]
    to_hf.add_argument("source", help="folder of one checkpoint: .../step-100")
    to_hf.add_argument("result", help="the model folder to make; needs twice its size")
    from_hf.add_argument(
        "source", help="folder with safetensors; float8 weights are dequantized"
    )
    from_hf.add_argument(
        "result",
        help="the checkpoint to make, for --checkpoint.initial_load_path; as step-0 "
        "of a checkpoint.folder it is a seed",
    )
    from_hf.add_argument(
        "--format",
        choices=("native", "dcp"),
        default="native",
        help="of the result (default: %(default)s)",
    )
    for command in (to_hf, from_hf):
        command.epilog = f"It {_MODEL_FLAGS}."
        command.add_argument("--model_name", help="--model.name (default: llama3)")
        command.add_argument("--model_flavor", help="--model.flavor, such as 8B")
    to_hf.add_argument(
        "--hf_assets_path",
        help="--model.hf_assets_path: the tokenizer, the split into files and the "
        "tokens that begin and end texts are taken from there",
    )
    to_hf.add_argument(
        "--export_dtype", help="--checkpoint.export_dtype (default: float32)"
    )


if __name__ == "__main__":
    sys.exit(main())
