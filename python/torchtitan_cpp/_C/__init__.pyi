"""C++ core of torchtitan_cpp; one submodule per folder of csrc/."""

from . import collectives as collectives
from . import config as config
from . import core as core
from . import storage as storage
