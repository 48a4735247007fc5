"""Requests by signal: to stop (SIGTERM, SIGINT, SIGHUP) and to save (SIGUSR1) are noted instead of ending the
process at once."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType
from typing import Self


def saving_ends_nothing() -> None:
    """From now on SIGUSR1 does not end the process while there is nothing to save: text is being prepared, or
    the run is over."""
    with suppress(ValueError):  # outside the main thread, whoever runs us handles the signals
        signal.signal(signal.SIGUSR1, lambda number, frame: None)


class SaveRequest:
    """Notes SIGUSR1 inside a `with` block instead of ending the process: Slurm's warning, or a user who wants
    a checkpoint now. Outside the main thread nothing is caught."""

    def __init__(self) -> None:
        self._asked = False
        self._earlier: object = None
        self._caught = False

    def __enter__(self) -> Self:
        try:
            self._earlier = signal.signal(signal.SIGUSR1, self._note)
            self._caught = True
        except ValueError:
            pass
        return self

    def __exit__(self, *error: object) -> None:
        if self._caught:
            signal.signal(signal.SIGUSR1, self._earlier)  # type: ignore[arg-type]  # what signal.signal gave

    def take(self) -> bool:
        """Whether one came since the last call. One that comes meanwhile is not lost."""
        if not self._asked:
            return False
        self._asked = False
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


class StopRequest:
    """Notes SIGINT and SIGTERM inside a `with` block; true once one came. The earlier handlers come back
    after it.

    With `once`, only the first of each kind is noted and a second one acts as it always does. Outside the
    main thread nothing is caught: whoever runs us there handles the signals.
    """

    def __init__(self, *, once: bool = False) -> None:
        self.count = 0
        self.signal: signal.Signals | None = None
        self._once = once
        self._earlier: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.count > 0

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: the run is to outlive its terminal
                self._earlier[number] = signal.signal(number, self._note)
        except ValueError:
            self._earlier.clear()
        return self

    def __exit__(self, *error: object) -> None:
        for number in self._earlier:
            self._restore(number)

    def request(self, number: int) -> None:
        """As if the signal had come, for one that another process got."""
        self.count += 1
        self.signal = signal.Signals(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.request(number)
        if self._once:
            self._restore(signal.Signals(number))

    def _restore(self, number: signal.Signals) -> None:
        signal.signal(number, self._earlier[number])  # type: ignore[arg-type]  # what signal.signal gave
