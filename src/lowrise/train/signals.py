"""Stop requests: the first SIGTERM or SIGINT ends the run after the current update, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """The signal that asked to stop, or none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the block a first signal is noted; a second one of the same kind acts as it always does."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        signal.signal(number, previous[signal.Signals(number)])

    caught = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in caught}
    try:
        for number in caught:
            signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs us there handles the signals
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
