"""How the peer lays a model out over ranks: as torchtitan's trainer does.

Its functions are called where they take a model; what its trainer does around them is
done here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.device_mesh
import torch.distributed.fsdp as fsdp
from torch.distributed.tensor.parallel import loss_parallel


class Alone:
    """One rank; the rows of a step are divided into microbatches."""

    pp_mesh: Any = None

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        self.parts = [model]
        self.options = options
        self.loss_sum = import_module("torchtitan.components.loss").cross_entropy_loss
        if options["mode"] == "compile":
            for block in model.layers.values():
                block.compile(fullgraph=True)
            self.loss_sum = torch.compile(self.loss_sum)

    def context(self) -> AbstractContextManager[object]:
        """Around forward and backward."""
        if self.options["dtype"] == "float32":
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def num_tokens(self, labels: torch.Tensor) -> Any:
        """Valid ones, of all ranks."""
        return (labels != -100).sum()

    def forward_backward(
        self, inputs: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """This rank's part of the mean loss of [batch, seq_len] tokens."""
        parts = self.options["microbatches"]
        num_tokens = self.num_tokens(labels)
        losses = []
        for ids, targets in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
            with self.context():
                prediction = self.parts[0](ids)
                loss = self.loss_sum(prediction, targets) / num_tokens
                del prediction
                torch.autograd.backward(loss)
            losses.append(loss.detach())
        return torch.sum(torch.stack(losses))

    def of_all_ranks(self, loss: torch.Tensor) -> float:
        """The loss of the step."""
        return float(loss)


class FullyShard(Alone):
    """FSDP2, which casts parameters without autocast."""

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        super().__init__(model, options)
        self.mesh = _mesh(options, "batch")
        import_module("torchtitan.models.llama3.infra.parallelize").apply_fsdp(
            model,
            self.mesh,
            param_dtype=getattr(torch, options["dtype"]),
            reduce_dtype=torch.float32,
            pp_enabled=False,
        )
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                # Gloo has no sum that scales, which it would use for a factor of 1.
                module.set_force_sum_reduction_for_comms(True)

    def context(self) -> AbstractContextManager[object]:
        return nullcontext()

    def num_tokens(self, labels: torch.Tensor) -> Any:
        dist_sum = import_module("torchtitan.distributed.utils").dist_sum
        return dist_sum(super().num_tokens(labels), self.mesh)

    def of_all_ranks(self, loss: torch.Tensor) -> float:
        dist.all_reduce(loss)
        return float(loss)


class TensorParallel(Alone):
    """DTensor: tensor and sequence parallelism, and loss parallel."""

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        super().__init__(model, options)
        import_module("torchtitan.models.llama3.infra.parallelize").apply_tp(
            model,
            _mesh(options, "tp"),
            loss_parallel=True,
            enable_float8_tensorwise_tp=False,
        )

    def context(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = loss_parallel()
        return context

    def of_all_ranks(self, loss: torch.Tensor) -> float:
        whole: Any = loss
        return float(whole.full_tensor())


class Pipeline(Alone):
    """torch.distributed.pipelining, stages as torchtitan cuts them."""

    def __init__(self, model: Any, args: Any, options: dict[str, Any]) -> None:
        super().__init__(model, options)
        titan = import_module("torchtitan.distributed.pipeline_parallel")
        schedules = import_module("torch.distributed.pipelining.schedules")
        name = options["schedule"]
        schedule_class = schedules.get_schedule_class(name)
        single = issubclass(schedule_class, schedules.PipelineScheduleSingle)
        mesh = self.pp_mesh = _mesh(options, "pp")
        names = titan.generate_llm_fqn_per_model_part(
            options["ranks"] * (1 if single else 2), args.n_layers
        )
        stages, self.parts = titan.pipeline_module_split(
            model, mesh, name, torch.device("cpu"), names
        )
        parallelism = SimpleNamespace(
            pipeline_parallel_schedule=name,
            pipeline_parallel_schedule_csv=None,
            pipeline_parallel_microbatch_size=options["batch"]
            // options["microbatches"],
            pipeline_parallel_degree=options["ranks"],
            pipeline_parallel_expert_parallel_overlap=False,
        )
        training = SimpleNamespace(local_batch_size=options["batch"])
        self.schedule = titan.build_pipeline_schedule(
            SimpleNamespace(parallelism=parallelism, training=training),
            stages,
            self._share_of_loss,
        )
        self.has_first = any(stage.is_first for stage in stages)
        self.has_last = any(stage.is_last for stage in stages)

    def _share_of_loss(
        self, prediction: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        num_tokens = self.options["batch"] * self.options["seq_len"]
        share: torch.Tensor = self.loss_sum(prediction, labels) / num_tokens
        return share

    def forward_backward(
        self, inputs: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        losses: list[torch.Tensor] = []
        self.schedule.step(
            *((inputs,) if self.has_first else ()),
            target=labels if self.has_last else None,
            losses=losses if self.has_last else None,
            return_outputs=False,
        )
        return torch.stack(losses).sum().detach() if losses else torch.zeros(())

    def of_all_ranks(self, loss: torch.Tensor) -> float:
        dist.all_reduce(loss)
        return float(loss)


def _mesh(options: dict[str, Any], name: str) -> Any:
    return dist.device_mesh.init_device_mesh(
        "cpu", (options["ranks"],), mesh_dim_names=(name,)
    )


def make_layout(model: Any, args: Any, options: dict[str, Any]) -> Alone:
    """Of ``options["layout"]``."""
    name = options["layout"]
    if name == "pp":
        return Pipeline(model, args, options)
    kinds = {"alone": Alone, "fsdp": FullyShard, "tp": TensorParallel}
    return kinds[name](model, options)
