"""What a run reports: console line, ``metrics.jsonl``, TensorBoard, W&B, summary."""

from torchtitan_cpp.metrics.flops import get_dense_model_nparams_and_flops
from torchtitan_cpp.metrics.loggers import Logger
from torchtitan_cpp.metrics.processor import MetricsProcessor, build_metrics_processor

__all__ = [
    "Logger",
    "MetricsProcessor",
    "build_metrics_processor",
    "get_dense_model_nparams_and_flops",
]
