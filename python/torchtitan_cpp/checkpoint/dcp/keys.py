"""Names of tensors and values in a DCP folder: those that torchtitan v0.2.2 uses.

Its state dict is ``{<fqn>: weight, .., "optimizer": {..}, "lr_scheduler": {..},
"dataloader": {..}, "train_state": {..}}``; DCP joins the keys of nested dicts by dots
and keeps the path of each. Optimizers are flattened: ``optimizer.state.<fqn>.exp_avg``,
``optimizer.param_groups.<fqn>.lr``.
"""

from __future__ import annotations

from torchtitan_cpp.checkpoint.state import Kind

PARTS = ("optimizer", "lr_scheduler", "dataloader", "train_state")
"""Beside the weights, which lie at the root."""

TRAIN_STATE_KEYS = {"step": "step", "num_tokens_seen": "ntokens_seen"}
"""Of our ``train_state`` and of theirs."""

Path = tuple[str, ...]

_STATE = "state."
_PARAM_GROUPS = "param_groups."
_OWN_PREFIX = "optimizer."


def key_of(path: Path) -> str:
    """As DCP flattens."""
    return ".".join(path)


def path_of(key: str) -> Path:
    """Of a key whose path is not stored: the part, and the rest."""
    part, dot, rest = key.partition(".")
    return (part, rest) if dot and part in PARTS else (key,)


def tensor_path(name: str, kind: Kind) -> Path:
    """Path of a tensor of ours: a weight, or ``optimizer.<moment>.<fqn>``."""
    if kind == "model":
        return (name,)
    moment, _, fqn = name.removeprefix(_OWN_PREFIX).partition(".")
    return state_path(fqn, moment) if fqn else ("optimizer", moment)


def state_path(fqn: str, name: str) -> Path:
    """Path of a state of the optimizer of a parameter."""
    return ("optimizer", f"{_STATE}{fqn}.{name}")


def param_group_path(fqn: str, name: str) -> Path:
    """Path of a setting of the optimizer of a parameter."""
    return ("optimizer", f"{_PARAM_GROUPS}{fqn}.{name}")


def optimizer_state_of(path: Path) -> tuple[str, str] | None:
    """Parameter and name of a state of the optimizer; None for another path.

    A path may have more steps than two: an optimizer that was not flattened.
    """
    return _of_optimizer(path, _STATE)


def param_group_of(path: Path) -> tuple[str, str] | None:
    """Parameter and name of a setting of the optimizer; None for another path."""
    return _of_optimizer(path, _PARAM_GROUPS)


def _of_optimizer(path: Path, prefix: str) -> tuple[str, str] | None:
    rest = ".".join(path[1:])
    if path[0] != "optimizer" or not rest.startswith(prefix):
        return None
    fqn, dot, name = rest.removeprefix(prefix).rpartition(".")
    return (fqn, name) if dot else None


def own_moment(fqn: str, moment: str) -> str:
    """Our name of the moment of a parameter."""
    return f"{_OWN_PREFIX}{moment}.{fqn}"
