"""Llama 3 (Grattafiori et al. 2024), with the 1B and 3B sizes of Llama 3.2."""

from __future__ import annotations

from torchtitan_cpp.models.llama3.args import (
    RoPEScalingArgs,
    TransformerModelArgs,
    llama3_args,
)
from torchtitan_cpp.models.llama3.model import Transformer
from torchtitan_cpp.train_spec import TrainSpec

__all__ = ["RoPEScalingArgs", "Transformer", "TransformerModelArgs", "llama3_args"]


def get_train_spec() -> TrainSpec:
    from torchtitan_cpp.data import build_dataloader, build_tokenizer
    from torchtitan_cpp.loss import build_cross_entropy_loss
    from torchtitan_cpp.lr_schedule import build_lr_schedulers
    from torchtitan_cpp.models.llama3.state_dict_adapter import Llama3StateDictAdapter
    from torchtitan_cpp.optim import build_optimizers
    from torchtitan_cpp.validation import build_validator

    return TrainSpec(
        model_cls=Transformer,
        model_args=llama3_args,
        parallelize_fn=None,
        pipelining_fn=None,
        build_optimizers_fn=build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=build_dataloader,
        build_tokenizer_fn=build_tokenizer,
        build_loss_fn=build_cross_entropy_loss,
        build_validator_fn=build_validator,
        state_dict_adapter=Llama3StateDictAdapter,
    )
