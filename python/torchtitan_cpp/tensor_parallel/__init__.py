"""Tensor parallelism of models written in Python: styles by names of modules.

Used as::

    TrainSpec(..., parallelize_fn=tensor_parallel_plan({
        "tok_embeddings": RowwiseParallel(output_layouts=Shard(1)),
        "layers.*.norm": SequenceParallel(),
        "layers.*.attention": PrepareModuleInput(
            input_layouts=Shard(1), desired_input_layouts=Replicate()),
        "layers.*.attention.wq": ColwiseParallel(),
        "layers.*.attention.wo": RowwiseParallel(output_layouts=Shard(1)),
        "output": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
    }))
"""

from torchtitan_cpp.tensor_parallel.layouts import Layout, Replicate, Shard
from torchtitan_cpp.tensor_parallel.plan import (
    TensorParallelPlan,
    tensor_parallel_plan,
)
from torchtitan_cpp.tensor_parallel.styles import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
)

__all__ = [
    "ColwiseParallel",
    "Layout",
    "ParallelStyle",
    "PrepareModuleInput",
    "PrepareModuleInputOutput",
    "PrepareModuleOutput",
    "Replicate",
    "RowwiseParallel",
    "SequenceParallel",
    "Shard",
    "TensorParallelPlan",
    "tensor_parallel_plan",
]
