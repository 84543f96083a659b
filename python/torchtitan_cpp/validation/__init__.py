"""The loss on data that the training does not see."""

from torchtitan_cpp.validation.validator import (
    BaseValidator,
    Evaluate,
    Reduce,
    Validator,
    build_validator,
)

__all__ = ["BaseValidator", "Evaluate", "Reduce", "Validator", "build_validator"]
