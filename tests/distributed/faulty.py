"""`lowrise` with a fault: `python faulty.py FAULT RANK STEP ARGUMENTS...`, started by torchrun.

After update STEP, rank RANK gets SIGTERM ("sigterm") or SIGKILL ("sigkill"), raises ("raise"), or changes
one bit of one of its weights ("drift").
"""

import os
import signal
import sys

import torch

from lowrise.cli import main
from lowrise.train.loop import Trainer, Update

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
        elif fault == "drift":
            with torch.no_grad():
                weight = trainer.model.lm_head.weight
                weight.view(-1)[7] = torch.nextafter(weight.view(-1)[7], torch.tensor(9.0))
    return done


Trainer.update = faulty_update  # type: ignore[method-assign]
sys.exit(main(sys.argv[4:]))
