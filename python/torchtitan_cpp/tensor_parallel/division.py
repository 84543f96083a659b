"""A model that is divided among the ranks of a tensor axis, while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.loss import LossFunction
from torchtitan_cpp.rank_thread import pause
from torchtitan_cpp.tensor_parallel.agreement import Compared, check_loss
from torchtitan_cpp.tensor_parallel.apply import LOCAL_RESULT_OF, apply_styles
from torchtitan_cpp.tensor_parallel.collectives import Axis, Group
from torchtitan_cpp.tensor_parallel.exchanges import gather_columns, sum_gradients_of
from torchtitan_cpp.tensor_parallel.placement import is_prediction, place
from torchtitan_cpp.tensor_parallel.plan import TensorParallelPlan


class Division:
    """Styles of ``plan``, applied to ``model``, whose parameters are still whole.

    Raises:
        ValueError: for a plan that does not fit the model.
    """

    def __init__(
        self, model: nn.Module, plan: TensorParallelPlan, group: Group
    ) -> None:
        styled, problems = plan.match(model)
        if problems:
            raise ValueError(f"TrainSpec.parallelize_fn: {'; '.join(problems)}")
        self._axis = Axis(group)
        self._placement = place(styled)
        self._classes: int | None = None
        """Of a prediction that is divided by its last dim; None: it is whole."""
        for each in styled:
            if is_prediction(each):
                assert isinstance(each.module, nn.Linear)
                self._classes = each.module.out_features
        self._compared: dict[str, Compared] = {}
        apply_styles(styled, self._axis)

    def divide(self, core: _C.nn.Model) -> _C.nn.Model:
        """``core``, with whole parameters, with this rank's pieces."""
        return _C.parallel.divide(
            core, dims=dict(self._placement.dims), axis=self._axis.group
        )

    def on_the_way(
        self, names: Sequence[str], tensors: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """What modules find in place of their parameters, which have these names.

        One exchange in backward sums all gradients of which each rank has a term.
        """
        found = list(tensors)
        summed = []
        for index, name in enumerate(names):
            if name in self._placement.summed:
                summed.append(index)
            elif name not in self._placement.dims:
                compared = self._compared.setdefault(name, Compared(name, self._axis))
                found[index] = compared(found[index])
        if summed:
            terms = sum_gradients_of([found[i] for i in summed], self._axis)
            for index, term in zip(summed, terms, strict=True):
                found[index] = term
        return found

    def loss(self, loss_fn: LossFunction, *, loss_parallel: bool) -> LossFunction:
        """``loss_fn`` for what this model predicts.

        Args:
            loss_parallel: whether ``loss_fn`` is the package's cross-entropy and may be
                computed from divided classes, so that logits are never gathered. It
                is a fused operation then, which ``loss_fn`` itself has no part in.
        """
        is_first = True

        def of_division(pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal is_first
            if self._classes is None:
                self._check_whole(pred)
                loss = loss_fn(pred, labels)
            else:
                loss = self._of_parts(pred, labels, loss_fn, loss_parallel)
            if is_first and isinstance(loss, torch.Tensor) and loss.numel() == 1:
                is_first = False
                check_loss(loss, self._axis)
            return loss

        return of_division

    @staticmethod
    def _check_whole(pred: object) -> None:
        if name := getattr(pred, LOCAL_RESULT_OF, None):
            raise ValueError(
                f"TrainSpec.parallelize_fn: the prediction is this rank's part of "
                f"{name}; give that output_layouts=Replicate(), or use_local_output="
                "False for a loss of divided classes"
            )

    def _of_parts(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        loss_fn: LossFunction,
        loss_parallel: bool,
    ) -> torch.Tensor:
        assert self._classes is not None
        begin, end = self._axis.range_of(self._classes)
        if pred.shape[-1] != end - begin:
            raise ValueError(
                "TrainSpec.parallelize_fn: use_local_output=False says that the "
                f"prediction has this rank's {end - begin} of {self._classes} classes "
                f"in its last dim, found shape {list(pred.shape)}"
            )
        if loss_parallel:
            with pause():
                return _C.nn.vocabulary_loss_sum(
                    pred, labels, first=begin, axis=self._axis.group
                )
        return loss_fn(gather_columns(pred, self._classes, self._axis), labels)
