"""`lowrise` with a fault: `python faulty.py FAULT RANK STEP ARGUMENTS...`, started by torchrun.

After update STEP, rank RANK gets SIGTERM ("sigterm") or SIGKILL ("sigkill"), or raises ("raise").
"""

import os
import signal
import sys

from lowrise.cli import main
from lowrise.train.step import TrainStep, Update

fault, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
update = TrainStep.__call__


def faulty_update(train_step: TrainStep) -> Update:
    done = update(train_step)
    if train_step.world.rank == rank and train_step.progress.step == step:
        if fault == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        elif fault == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "raise":
            raise ZeroDivisionError("the fault that was asked for")
    return done


TrainStep.__call__ = faulty_update  # type: ignore[method-assign]
sys.exit(main(sys.argv[4:]))
