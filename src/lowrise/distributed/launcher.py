"""A command that several processes run at once: who speaks, and what torchrun is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lowrise.distributed.world import FailedElsewhere, LostRanks, World
from lowrise.errors import UsageError

# The rank that failed is first on the screen and in torchrun's table, whose clock counts seconds.
HEAD_START_SECONDS = 2.0


def prefix_of(error: Exception, world: World) -> str | None:
    """What stands before a message on the screen; None where another rank says the same."""
    if world.size == 1 or world.leads:
        return "error: "
    met_by_all = isinstance(error, UsageError) or hasattr(error, "exit_code")
    return None if met_by_all else f"error at rank {world.rank}: "


def require_one_process(name: str, world: World) -> None:
    """Refuse several processes, for commands whose work they would only repeat."""
    if world.size > 1:
        raise UsageError(f"lowrise {name} runs in one process: start it without torchrun.")


@contextmanager
def told_to_torchrun() -> Iterator[None]:
    """Leave the message of an exception where torchrun looks for it, so that its table shows the first
    one.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LostRanks):
            time.sleep(HEAD_START_SECONDS)
        if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, FailedElsewhere):
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
        raise
