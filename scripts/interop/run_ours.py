"""One run of ours, started by dcp.py: run_ours.py [flags of torchtitan_cpp.train].

The data is that of tokens.py, a function of the step alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tokens import tokens

from torchtitan_cpp.input_data import Batch
from torchtitan_cpp.train import main
from torchtitan_cpp.trainer import Trainer


class FixedData(Trainer):
    """Reads tokens.py instead of the loader."""

    def batch_generator(self) -> Iterator[Batch]:
        step = self.step
        ranks = self.world.parallel_dims.batch
        while True:
            step += 1
            ids = tokens(step, self.world.data_rank, ranks)
            yield {"input": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous()


sys.exit(main(sys.argv[1:], trainer_class=FixedData))
