"""Signals: what SIGINT, SIGTERM and SIGHUP (to stop) and SIGUSR1 (to save) do to a command.

`leave_when_stopped`: anywhere in a command, one message and the exit code 128 + N at once. Nothing is
unwound: what is on the disk is whole or a temporary file (`files.write_whole`), locks die with their process,
and an exception out of nowhere would end in whatever library it meets. `StopRequest`: inside a block the
signal is noted, and the work saves before it ends. `SaveRequest`: SIGUSR1 is noted, and the work saves and
goes on.

Nothing here imports what takes time: a signal that comes before the handler is there is Python's own.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Python runs handlers between two of its own instructions. A library that stays longer than this in its own
# code (the training of a tokenizer: minutes) is not waited for.
PATIENCE_SECONDS = 1.0

_LEAVE_BAR = b"\r\x1b[K\x1b[?25h"  # clear the line, show the cursor: progress bars hide it
_handled: dict[int, int] = dict.fromkeys(STOP_SIGNALS, 0)  # times that Python ran a handler, by signal


def leave_when_stopped() -> None:
    """Let every stop signal end this process, from now on, by one message and exit code 128 + N.

    SIGHUP stays ignored where it is (nohup). For the main thread of a command.
    """
    for number in _heeded():
        signal.signal(number, _leave_now)
    import threading

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="stop signals", daemon=True).start()


def ignore_stop_signals() -> None:
    """The work is done: what comes now would only cut off the interpreter's own end."""
    for number in _heeded():
        signal.signal(number, signal.SIG_IGN)


def leave(number: int) -> None:
    """End this process with the message and exit code of a signal."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, RuntimeError, ValueError):  # closed, broken, or in use below us
            continue
    try:
        for terminal in filter(os.isatty, (1, 2)):
            os.write(terminal, _LEAVE_BAR)
        if speaks():
            os.write(2, f"{told(number)}\n".encode())
    finally:  # also where the terminal has gone
        os._exit(128 + number)


def end_now() -> NoReturn:
    """End this process, one of several ranks that has done its work, without closing the interpreter.

    That destroys threads of torch's gloo which may still run: about one rank in ten then aborted ("terminate
    called without an active exception", torch 2.13 on a CPU), and torchrun called the whole run failed. A
    rank that fails closes its interpreter: until then torchrun lets the others speak.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or its reader has gone
            continue
    os._exit(0)


def speaks() -> bool:
    """Whether this process says what all do: of several ranks, the first."""
    return os.environ.get("RANK", "0") == "0"


def told(number: int) -> str:
    """The message of a command that a signal has ended."""
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return f"interrupted{name}: the same command continues."


def _heeded() -> list[signal.Signals]:
    return [n for n in STOP_SIGNALS if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]


def _leave_now(number: int, frame: FrameType | None) -> None:
    leave(number)


def _watch(reading: int) -> None:
    """Leave for a main thread that does not come to run its handlers: at the first signal where it would
    leave, at the second where it would note it. The system tells of each signal through the pipe."""
    before, unheard = dict(_handled), dict.fromkeys(_handled, 0)
    while arrived := os.read(reading, 64):
        time.sleep(PATIENCE_SECONDS)
        while select.select([reading], [], [], 0)[0]:  # what came meanwhile is the same request
            arrived += os.read(reading, 64)
        for number in set(arrived) & _handled.keys():
            leaves = signal.getsignal(number) is _leave_now  # before the count: a note restores this handler
            unheard[number] = unheard[number] + 1 if _handled[number] == before[number] else 0
            if unheard[number] > (0 if leaves else 1):
                leave(number)
        before = dict(_handled)


def saving_ends_nothing() -> None:
    """From now on SIGUSR1 does not end the process while there is nothing to save: text is being prepared, or
    the run is over."""
    try:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
    except ValueError:  # outside the main thread, whoever runs us handles the signals
        return


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
    """Notes SIGINT, SIGTERM and SIGHUP inside a `with` block; true once one came. The earlier handlers come
    back after it.

    One that comes again within `REPEAT_SECONDS` is the same request: a scheduler signals every process of a
    job, and its launcher signals them again. With `once`, a later one acts as it always does. Outside the
    main thread nothing is caught: whoever runs us there handles the signals.
    """

    REPEAT_SECONDS = 1.0

    def __init__(self, *, once: bool = False) -> None:
        self.count = 0
        self.signal: signal.Signals | None = None
        self._once = once
        self._earlier: dict[int, object] = {}
        self._noted: dict[int, float] = {}  # when, by signal

    def __bool__(self) -> bool:
        return self.count > 0

    def __enter__(self) -> Self:
        try:
            for number in _heeded():  # not a hangup under nohup: the run is to outlive its terminal
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
        _handled[number] += 1
        earlier = self._noted.get(number)
        self._noted[number] = time.monotonic()
        if earlier is not None and self._noted[number] - earlier < self.REPEAT_SECONDS:
            return
        if earlier is not None and self._once:
            self._restore(number)
            signal.raise_signal(number)
        self.request(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._earlier[number])  # type: ignore[arg-type]  # what signal.signal gave
