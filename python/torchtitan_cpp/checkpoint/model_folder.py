"""What a Hugging Face model folder holds beside weights.

``AutoModelForCausalLM`` needs ``config.json``, ``AutoTokenizer`` the files of the
tokenizer, and ``generate`` the tokens that begin and end a text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch

from torchtitan_cpp.checkpoint.manifest import StoredFile
from torchtitan_cpp.checkpoint.plain_files import parts_of, write_file
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter
from torchtitan_cpp.logging import logger

CONFIG, GENERATION, TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    TOKENIZER,
)
_NOT_COMPUTED_WITH = ("architectures", "max_position_embeddings")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_model_files(
    folder: str, adapter: BaseStateDictAdapter, dtype: torch.dtype
) -> list[StoredFile]:
    """Add to a folder of weights what loads it; what was written.

    The sizes in ``config.json`` are those of the adapter's ``hf_config()``, if it has
    this method, else the file is that of ``hf_assets_path``; the tokenizer is copied
    from there.

    A file there that is damaged is told and left out: weights are worth more.
    """
    assets = adapter.hf_assets_path or ""
    original = _read_json(assets, CONFIG)
    ids = _special_ids(assets, original)
    hf_config = getattr(adapter, "hf_config", None)
    written: dict[str, Mapping[str, Any]] = {}
    if hf_config is not None or original:
        config = dict(hf_config() if hf_config is not None else original)
        config.pop("quantization_config", None)  # what is written is not quantized
        config.pop("dtype", None)
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
        # Without these, transformers takes those that it knows of the family.
        written[CONFIG] = {**dict.fromkeys(_SPECIAL_IDS), **config, **ids}
        if not _read_json(assets, GENERATION):
            written[GENERATION] = ids
    else:
        logger.warning(
            f"No {CONFIG} is written: the adapter has no hf_config(), and "
            "model.hf_assets_path holds none"
        )
    copied = [
        name
        for name in (*_TOKENIZER_FILES, GENERATION)
        if assets and os.path.isfile(os.path.join(assets, name))
    ]
    copied = [name for name in copied if name not in written]
    if "tokenizer.json" in copied and TOKENIZER not in copied:
        # Else transformers makes the tokenizer of the model's family from the file.
        written[TOKENIZER] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    files = []
    for name, content in written.items():
        text = json.dumps(content, indent=2) + "\n"
        files.append(write_file(folder, name, [text.encode()]))
    for name in copied:
        files.append(write_file(folder, name, parts_of(os.path.join(assets, name))))
    return files


def warn_of_other_settings(folder: str, adapter: BaseStateDictAdapter) -> None:
    """Tell what the folder's ``config.json`` and the model do not agree on.

    Shapes do not show it: weights of another rotary base load and give nonsense.
    """
    hf_config = getattr(adapter, "hf_config", None)
    config = _read_json(folder, CONFIG)
    if hf_config is None or not config:
        return
    stored = _comparable(config)
    differing = [
        f"{key} {stored[key]!r}, the model {value!r}"
        for key, value in _comparable(hf_config()).items()
        if key in stored and stored[key] != value
    ]
    if differing:
        logger.warning(
            f"{os.path.join(folder, CONFIG)} has {'; '.join(differing)}: the weights "
            "may have been trained otherwise than they are used here"
        )


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model computes with, as older and newer transformers write it."""
    found = {
        key: value
        for key, value in config.items()
        if value is not None and key not in _NOT_COMPUTED_WITH
    }
    rope = found.pop("rope_parameters", None)  # of transformers 5
    if isinstance(rope, dict):
        found["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        if "rope_theta" in rope:
            found["rope_theta"] = rope["rope_theta"]
    scaling = found.get("rope_scaling", {})
    if isinstance(scaling, dict):
        scaling = {("rope_type" if k == "type" else k): v for k, v in scaling.items()}
        found["rope_scaling"] = {} if scaling.get("rope_type") == "default" else scaling
    return found


def _special_ids(assets: str, original: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the original model, else those of its tokenizer."""
    # Looked for here only: the data package needs the tokenizers library.
    from torchtitan_cpp.data.tokenizer import HuggingFaceTokenizer

    known = {**original, **_read_json(assets, GENERATION)}
    ids = {key: known[key] for key in _SPECIAL_IDS if known.get(key) is not None}
    if ids or not os.path.isdir(assets):
        return ids
    try:
        tokenizer = HuggingFaceTokenizer(assets)
    except (FileNotFoundError, ValueError) as error:
        logger.warning(f"No tokens that begin and end texts are written: {error}")
        return ids
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {key: value for key, value in found.items() if value is not None}


def _read_json(folder: str, name: str) -> dict[str, Any]:
    """Empty if there is no such file, or none that can be read."""
    path = os.path.join(folder, name)
    if not folder or not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        logger.warning(f"{path} is left out: {error}")
        return {}
    return content if isinstance(content, dict) else {}
