"""Trains: ``torchrun -m torchtitan_cpp.train [flags]``, or ``python -m`` for one rank.

With ``--comm.mode=local_tensor`` that one process runs ``NGPU`` ranks as its threads.

``--help`` lists all flags. Without ``--job.config_file`` the packaged debug job runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from torchtitan_cpp import stopping
from torchtitan_cpp.config import ConfigError, check_run, read_config
from torchtitan_cpp.custom_import import import_custom_code
from torchtitan_cpp.errors import needs_traceback
from torchtitan_cpp.misfits import known_names, model_misfits
from torchtitan_cpp.parallel import EXIT_RANK_LOST, CollectiveError
from torchtitan_cpp.refusal import refuse
from torchtitan_cpp.train_local import train_local
from torchtitan_cpp.trainer import Trainer
from torchtitan_cpp.world import find_device_type, find_world_size


def main(
    argv: Sequence[str] | None = None, trainer_class: type[Trainer] = Trainer
) -> int:
    """Parse, check, build, train; the exit code.

    Args:
        argv: flags; None: those of this process.
        trainer_class: ``Trainer`` or a subclass of one's own.
    """
    try:
        loaded = read_config(argv)
        import_custom_code(loaded)
        world_size = find_world_size(loaded.config)
        check_run(
            loaded,
            world_size=world_size,
            device=find_device_type(),
            known=known_names(loaded),
            misfits=model_misfits(loaded),
        )
    except (ConfigError, ValueError) as error:
        return refuse(str(error))
    if os.environ.get("RANK", "0") == "0":
        for note in loaded.notes:
            print(f"note: {note}", file=sys.stderr)
    stopping.allow()
    if loaded.config.comm.mode == "local_tensor":
        return train_local(
            loaded.config,
            trainer_class,
            world_size=world_size,
        )
    trainer: Trainer | None = None
    try:
        trainer = trainer_class(loaded.config)
        stopping.take_over()  # again: libraries may have replaced the handler
        trainer.train()
    except Exception as error:
        return _fail(trainer, error)
    trainer.close()
    return 0


def _fail(trainer: Trainer | None, error: Exception) -> int:
    if trainer is None and isinstance(error, CollectiveError):
        print(error, file=sys.stderr)  # it names the ranks that did not come or died
        return EXIT_RANK_LOST
    if not isinstance(error, CollectiveError):
        if needs_traceback(error):
            traceback.print_exc()
        elif trainer is None or trainer.world.distributed is None:
            print(error, file=sys.stderr)
    if trainer is None or trainer.world.distributed is None:
        return 1
    line = trainer.world.distributed.report_failure(error)
    print(line, file=sys.stderr, flush=True)
    trainer.close(failed=True)
    lost = isinstance(error, CollectiveError)
    # A collective may still wait in a thread of the library: nothing is torn down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_RANK_LOST if lost else 1)


if __name__ == "__main__":
    sys.exit(main())
