"""A compiler backend that says what it is given, for jobs that import this module."""

from __future__ import annotations

from typing import Any

import tiny_python_model
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

__all__ = ["tiny_python_model"]


def _count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """Prints a line for each forward and leaves the graph as it is."""
    products = sum("addmm" in str(node.target) for node in graph.graph.nodes)
    print(f"counted: compiled a graph with {products} product", flush=True)
    return make_boxed_func(graph.forward)


torch._dynamo.register_backend(
    aot_autograd(
        fw_compiler=_count, bw_compiler=lambda graph, _: make_boxed_func(graph.forward)
    ),
    name="counted",
)
