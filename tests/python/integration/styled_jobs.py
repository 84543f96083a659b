"""A Python model with plans of tensor parallelism, for jobs that import this module."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import tiny_jobs  # registers its dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from styled_models import SEQUENCE, WHOLE, Args, Styled  # noqa: E402

from torchtitan_cpp import get_train_spec, register_train_spec  # noqa: E402
from torchtitan_cpp.tensor_parallel import (  # noqa: E402
    SequenceParallel,
    tensor_parallel_plan,
)

__all__ = ["tiny_jobs"]

_spec = replace(
    get_train_spec("llama3"),
    model_cls=Styled,
    model_args={"plain": Args(vocab_size=2048)},
    state_dict_adapter=None,
)
register_train_spec(
    "styled", replace(_spec, parallelize_fn=tensor_parallel_plan(SEQUENCE))
)
register_train_spec(
    "styled_whole", replace(_spec, parallelize_fn=tensor_parallel_plan(WHOLE))
)
register_train_spec(
    "misspelled",
    replace(
        _spec,
        parallelize_fn=tensor_parallel_plan(
            {**WHOLE, "layers.*.atention.wq": SequenceParallel()}
        ),
    ),
)
