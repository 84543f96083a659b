"""Settings of the optimizer in a foreign folder beside those of the configuration."""

from __future__ import annotations

from collections.abc import Mapping

from torchtitan_cpp.checkpoint.dcp.foreign import read_param_groups
from torchtitan_cpp.checkpoint.state import TorchSettings
from torchtitan_cpp.logging import logger

COMPARED = {
    "betas": "optimizer.beta1, optimizer.beta2",
    "eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
}
"""Name in torch's parameter groups to flags. The moments were made with the first two;
the learning rate is the schedule's, which is told where it begins."""


def tell_other_settings(path: str, settings: TorchSettings) -> None:
    """Warn of each setting that the folder at ``path`` has another value of.

    The run goes on with its own. A folder whose settings cannot be read is told too.
    """
    try:
        found = read_param_groups(path, COMPARED)
    except (ValueError, OSError) as error:
        logger.warning(f"The optimizer's settings are not compared: {error}")
        return
    for name, flags in COMPARED.items():
        differing = _differing(name, found.get(name, {}), settings)
        if not differing:
            continue
        first, count = min(differing), len(differing)
        there, here = differing[first]
        logger.warning(
            f"{path}: saved with {name} {there} for {first}"
            f"{f' and {count - 1} more parameters' if count > 1 else ''}; the "
            f"configuration has {here} and counts ({flags})"
        )


def _differing(
    name: str, found: Mapping[str, object], settings: TorchSettings
) -> dict[str, tuple[object, object]]:
    """By parameter what is there and what is here."""
    differing: dict[str, tuple[object, object]] = {}
    for fqn, there in found.items():
        here = settings.param_groups.get(fqn, {}).get(name)
        if here is not None and _numbers(there) != _numbers(here):
            differing[fqn] = (there, here)
    return differing


def _numbers(value: object) -> tuple[object, ...]:
    """Pairs are tuples there and may be lists here."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
