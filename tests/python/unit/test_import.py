import torch

import torchtitan_cpp
from torchtitan_cpp import _C


def test_extension_was_built_against_the_running_torch():
    assert _C.core.compiled_torch_version() == torch.__version__.split("+")[0]
    assert torchtitan_cpp.__version__
