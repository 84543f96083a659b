"""Text data: tokenizers, datasets by name, loaders whose order no layout changes."""

from torchtitan_cpp.data.batches import IGNORED_LABEL, Batch
from torchtitan_cpp.data.builders import build_dataloader, build_validation_dataloader
from torchtitan_cpp.data.loader import DataLoader, merge_data_states
from torchtitan_cpp.data.missing_path import PACKAGED_TOKENIZER
from torchtitan_cpp.data.records import BadRecordsError, DocumentSource, Record
from torchtitan_cpp.data.registry import DATASETS, DatasetConfig, register_dataset
from torchtitan_cpp.data.text_files import open_text_files
from torchtitan_cpp.data.tokenizer import (
    BaseTokenizer,
    HuggingFaceTokenizer,
    build_hf_tokenizer,
    build_tokenizer,
    check_vocabulary,
)

__all__ = [
    "DATASETS",
    "IGNORED_LABEL",
    "PACKAGED_TOKENIZER",
    "BadRecordsError",
    "BaseTokenizer",
    "Batch",
    "DataLoader",
    "DatasetConfig",
    "DocumentSource",
    "HuggingFaceTokenizer",
    "Record",
    "build_dataloader",
    "build_hf_tokenizer",
    "build_tokenizer",
    "build_validation_dataloader",
    "check_vocabulary",
    "merge_data_states",
    "open_text_files",
    "register_dataset",
]
