"""`lowrise` with a fault: `python faulty.py FAULT RANK STEP ARGUMENTS...`, started by torchrun.

After update STEP, rank RANK gets SIGTERM ("sigterm"; "late sigterm": while it asks the others whether they
were told to stop) or SIGKILL ("sigkill"), or raises ("raise").
"""

import os
import signal
import sys
from collections.abc import Sequence

from lowrise.cli import main
from lowrise.distributed import World
from lowrise.train.step import TrainStep, Update

fault, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
update, ask = TrainStep.__call__, World.largest_of
asks_now = False


def faulty_update(train_step: TrainStep) -> Update:
    global asks_now
    done = update(train_step)
    if train_step.world.rank == rank and train_step.progress.step == step:
        if fault == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        elif fault == "late sigterm":
            asks_now = True
        elif fault == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "raise":
            raise ZeroDivisionError("the fault that was asked for")
    return done


def interrupted_ask(world: World, numbers: Sequence[int]) -> list[int]:
    global asks_now
    answer = ask(world, numbers)
    if asks_now:
        asks_now = False
        os.kill(os.getpid(), signal.SIGTERM)
    return answer


World.largest_of = interrupted_ask  # type: ignore[method-assign]
TrainStep.__call__ = faulty_update  # type: ignore[method-assign]
sys.exit(main(sys.argv[4:]))
