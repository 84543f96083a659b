"""Download tokenizer, configuration or weights of a model from the Hugging Face hub.

python scripts/download_hf_assets.py --repo_id meta-llama/Llama-3.1-8B \
    --assets tokenizer config --hf_token ...

The files lie in <local_dir>/<model name>/ afterwards, which is what
model.hf_assets_path and checkpoint.initial_load_path expect.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

ASSETS: dict[str, tuple[str, ...]] = {
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
    ),
    "safetensors": ("*.safetensors", "*model.safetensors.index.json"),
    "index": ("*model.safetensors.index.json",),
    "config": ("config.json", "generation_config.json"),
}
"""Patterns of file names (without folder) by kind of asset."""


def matches(file: str, patterns: Sequence[str]) -> bool:
    """Whether the name of a file, without its folders, fits one of the patterns."""
    name = PurePosixPath(file).name.lower()
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns)


def select_files(
    available: Sequence[str],
    *,
    assets: Sequence[str],
    additional_patterns: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """The files to download, and the assets or patterns that no file fits."""
    wanted: dict[str, Sequence[str]] = {name: ASSETS[name] for name in assets}
    wanted |= {pattern: (pattern,) for pattern in additional_patterns}
    everything = [pattern for patterns in wanted.values() for pattern in patterns]
    selected = [file for file in available if matches(file, everything)]
    missing = [
        name
        for name, patterns in wanted.items()
        if not any(matches(file, patterns) for file in available)
    ]
    return selected, missing


def model_folder(repo_id: str, local_dir: str | Path) -> Path:
    """Where the files of a repository go.

    Raises:
        ValueError: the id is not ``organization/model``.
    """
    parts = repo_id.strip().split("/")
    if len(parts) != 2 or not all(parts) or parts[1] in (".", ".."):
        raise ValueError(f"--repo_id: expected organization/model, got '{repo_id}'")
    return Path(local_dir) / parts[1]


def download(
    arguments: argparse.Namespace,
    *,
    list_files: Callable[..., Sequence[str]],
    download_file: Callable[..., str],
) -> int:
    """Download what the arguments ask for; the exit code.

    Args:
        list_files, download_file: ``huggingface_hub``'s ``list_repo_files`` and
            ``hf_hub_download``.
    """
    folder = model_folder(arguments.repo_id, arguments.local_dir)
    access = {"repo_id": arguments.repo_id, "token": arguments.hf_token}
    available = list_files(**access)
    if arguments.all:
        files: list[str] = list(available)
        missing: list[str] = []
    else:
        files, missing = select_files(
            available,
            assets=arguments.assets,
            additional_patterns=arguments.additional_patterns,
        )
    for name in missing:
        print(f"warning: {arguments.repo_id} has no file for '{name}'")
    if not files:
        print(f"nothing to download; the repository has: {', '.join(available)}")
        return 1
    for number, file in enumerate(files, start=1):
        print(f"[{number}/{len(files)}] {file}", flush=True)
        download_file(filename=file, local_dir=str(folder), **access)
    print(f"downloaded {len(files)} files to {folder}")
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends with a message if it asks for nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo_id", required=True, help="organization/model")
    parser.add_argument(
        "--local_dir",
        default="assets/hf/",
        help="a folder named after the model is made in it (default: %(default)s)",
    )
    parser.add_argument(
        "--assets",
        nargs="+",
        default=[],
        choices=sorted(ASSETS),
        help="kinds of files",
    )
    parser.add_argument(
        "--additional_patterns",
        nargs="+",
        default=[],
        help="further file names, * and ? allowed",
    )
    parser.add_argument("--all", action="store_true", help="every file")
    parser.add_argument(
        "--hf_token", default=None, help="access token, for gated and private models"
    )
    arguments = parser.parse_args(argv)
    if not (arguments.all or arguments.assets or arguments.additional_patterns):
        parser.error("expected --assets, --additional_patterns or --all")
    return arguments


def main() -> int:
    arguments = parse()
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return download(
            arguments, list_files=list_repo_files, download_file=hf_hub_download
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        print(
            f"{arguments.repo_id}: no such repository, or it needs --hf_token of an "
            f"account that may read it: {error}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
