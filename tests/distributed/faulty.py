"""`lowrise` with a fault: `python faulty.py FAULT RANK STEP ARGUMENTS...`, started by torchrun.

After update STEP, rank RANK gets SIGTERM ("sigterm") or SIGKILL ("sigkill"), or raises ("raise").
"""

import os
import signal
import sys

from lowrise.cli import main
from lowrise.train.loop import Trainer
from lowrise.train.step import Update

fault, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
update = Trainer.update


def faulty_update(trainer: Trainer) -> Update:
    done = update(trainer)
    if trainer.world.rank == rank and trainer.progress.step == step:
        if fault == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        elif fault == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "raise":
            raise ZeroDivisionError("the fault that was asked for")
    return done


Trainer.update = faulty_update  # type: ignore[method-assign]
sys.exit(main(sys.argv[4:]))
