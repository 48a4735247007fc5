"""A command that several processes run at once: who speaks, what torchrun is told, and what happens when
torchrun is gone.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lowrise.distributed.world import FailedElsewhere, LostRanks, World
from lowrise.errors import LowriseError, UsageError, printable

# The rank that failed is first on the screen and in torchrun's table, whose clock counts seconds.
TORCHRUN_REPORT_DELAY = 2.0

# A worker whose torchrun has gone notices it within the first, is asked to save and stop, and ends by itself
# after the second at the latest: others that have already gone may leave it waiting for them.
LOOK_SECONDS, GRACE_SECONDS = 2.0, 60.0


def prefix_of(error: Exception) -> str | None:
    """What stands before a message on the screen; None where another rank says the same."""
    try:
        world = World.from_environment()
    except UsageError:
        return "error: "
    if world.size == 1 or world.leads:
        return "error: "
    met_by_all = isinstance(error, UsageError) or hasattr(error, "exit_code")
    return None if met_by_all else f"error at rank {world.rank}: "


@contextmanager
def among_ranks(name: str, *, alone: bool) -> Iterator[None]:
    """Around a command whose processes torchrun has started; one that runs `alone` is refused."""
    world = World.from_environment()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with(os.getppid())
    with _told_to_torchrun():
        if alone and world.size > 1:
            raise UsageError(f"lowrise {name} runs in one process: start it without torchrun.")
        yield


@contextmanager
def _told_to_torchrun() -> Iterator[None]:
    """Leave an exception where torchrun looks for it, so that its table shows the first one: a message of
    ours as it is, anything else with its stack.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LostRanks):
            time.sleep(TORCHRUN_REPORT_DELAY)
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if file and isinstance(error, LowriseError) and not isinstance(error, FailedElsewhere):
            _record(file, printable(str(error)))
        elif file and not isinstance(error, FailedElsewhere):
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
        raise


def _record(file: str, message: str) -> None:
    """Torch's form of an error, without the stack that its table would show instead of the message."""
    facts = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
    with suppress(OSError), open(file, "w", encoding="utf-8") as stream:  # the message itself is what counts
        json.dump({"message": facts}, stream)


def _end_with(launcher: int) -> None:
    """Stop this process when its launcher has gone without stopping it (SIGKILL, out of memory)."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)  # ranks agree to save and stop
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
