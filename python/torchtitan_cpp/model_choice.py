"""The model that a command's flags name."""

from __future__ import annotations

from collections.abc import Sequence

from torchtitan_cpp.config import Loaded, load_config
from torchtitan_cpp.config.problems import did_you_mean
from torchtitan_cpp.custom_import import import_custom_code
from torchtitan_cpp.train_spec import get_train_spec


def load_config_of_model(flags: Sequence[str]) -> Loaded:
    """The configuration of the flags, whose model and flavor are known.

    Raises:
        ValueError: for a bad configuration.
    """
    loaded = load_config(flags)
    import_custom_code(loaded)
    model = loaded.config.model
    flavors = list(get_train_spec(model.name).model_args)
    if model.flavor not in flavors:
        hint = did_you_mean(model.flavor, flavors)
        raise ValueError(
            f"{loaded.origin('model.flavor')}: model.flavor: expected one of "
            f"{', '.join(flavors)}, found {model.flavor!r}" + (hint and f"; {hint}")
        )
    return loaded
