"""Initial values of a Python model: made whole with one seed, alike on all ranks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from torchtitan_cpp.models.protocol import ModelProtocol


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors have ``dtype`` inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_whole(
    make: Callable[[], nn.Module], *, seed: int, dtype: torch.dtype
) -> nn.Module:
    """The model on the CPU with initial parameters and buffers.

    ``make`` runs under the seed; where the model has an ``init_weights``, that gives
    the values, again under the seed. The state of torch's generator is left as it was.
    """
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        default_dtype(dtype),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        whole = make()
        init = getattr(whole, "init_weights", None)
        inherited = getattr(init, "__func__", None) is ModelProtocol.init_weights
        if init is None or inherited:
            return whole
        torch.manual_seed(seed)
        accepted = inspect.signature(init).parameters
        if "buffer_device" in accepted:
            init(buffer_device=torch.device("cpu"))
        else:
            init()
    return whole


def named_values(whole: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters under every name they have."""
    return {
        name: parameter.detach()
        for name, parameter in whole.named_parameters(remove_duplicate=False)
    }


def copy_buffers(module: nn.Module, whole: nn.Module, device: torch.device) -> None:
    """Give ``module`` the buffers of ``whole``, those that are not saved too."""
    owners = dict(whole.named_modules(remove_duplicate=False))
    moved: dict[int, torch.Tensor] = {}
    for prefix, owner in module.named_modules():
        for key, buffer in owners[prefix]._buffers.items():
            if buffer is not None and id(buffer) not in moved:
                moved[id(buffer)] = buffer.to(device).contiguous()  # to be loaded into
            owner._buffers[key] = None if buffer is None else moved[id(buffer)]
