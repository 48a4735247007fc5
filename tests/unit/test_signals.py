"""Requests to stop: one that is repeated at once is the same, a later one acts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lowrise import signals
from lowrise.signals import STOP_SIGNALS, StopRequest, told


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def acted(monkeypatch):
    """What came through to the earlier handlers."""
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in STOP_SIGNALS}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_acts_once_it_is_another_request(number, clock, acted):
    with StopRequest(once=True) as stop:
        signal.raise_signal(number)
        clock[0] += 0.3
        signal.raise_signal(number)  # torchrun passes on what the scheduler has sent to all
        assert (stop.count, stop.signal, acted) == (1, number, [])
        clock[0] += 1.5
        signal.raise_signal(number)
        assert acted == [number]
    signal.raise_signal(number)
    assert acted == [number, number], "the earlier handlers are back"


def test_without_once_every_request_is_counted(clock, acted):
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            clock[0] += 2
        assert (stop.count, acted) == (3, [])


def test_messages_name_the_signal():
    assert told(signal.SIGINT) == "interrupted: the same command continues."
    assert told(signal.SIGHUP) == "interrupted by SIGHUP: the same command continues."


def test_a_rank_ends_without_closing_the_interpreter():
    """What it has said is said, and what was to be done at the end is done."""
    program = (
        "import atexit, sys; atexit.register(print, 'at the end'); sys.argv = ['lowrise', '--version']; "
        "from lowrise.__main__ import main; main(); print('came back')"
    )
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("lowrise ")
    assert done.stdout.endswith("at the end\n")
