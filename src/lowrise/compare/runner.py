"""The loop of a comparison or a sweep: start the runs that are needed, collect what ended, stop gently.

Which runs are needed is asked again after every outcome, so a search may answer what it has seen. Nothing is
remembered between starts but the run directories: what an earlier start finished is taken from there.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

from lowrise.compare.live import Display
from lowrise.compare.outcomes import Key, Outcome, RunSpec, read_earlier, read_outcome
from lowrise.compare.workers import Ended, Job, Pool
from lowrise.console import Console
from lowrise.signals import StopRequest, told

TRAIN_COMMAND = (sys.executable, "-m", "lowrise", "train")
STOP_SECONDS = 120.0  # time for a worker to write its checkpoint after SIGTERM
_POLL_SECONDS = 0.1


class Runner(Generic[Key]):
    """Runs to the end what `required` asks for.

    Args:
        required: Outcomes so far -> every run known to be needed, in the order to start them.
        expected: Outcomes so far -> how many runs there will be.
        runs_dir: Where run directories lie.
        command: The words before the recipe.
        pool: Where runs run.
        display: What is shown meanwhile.
        stop: Whether the user has asked to stop.
        keep: Called with the outcomes so far, at the start and after each change.
    """

    def __init__(
        self,
        required: Callable[[Mapping[Key, Outcome]], Sequence[RunSpec[Key]]],
        expected: Callable[[Mapping[Key, Outcome]], int],
        *,
        runs_dir: Path,
        command: Sequence[str],
        pool: Pool,
        display: Display,
        stop: StopRequest,
        keep: Callable[[Mapping[Key, Outcome]], None] = lambda outcomes: None,
    ) -> None:
        self._required, self._expected, self._runs_dir = required, expected, runs_dir
        self._command, self._pool, self._display, self._stop = tuple(command), pool, display, stop
        self._keep = keep
        self._specs: dict[str, RunSpec[Key]] = {}
        self._outcomes: dict[Key, Outcome] = {}

    def run(self) -> dict[Key, Outcome]:
        """Every outcome; of some runs none where a stop was asked for."""
        waiting = [] if self._stop.count else self._waiting()
        self._keep(self._outcomes)
        while waiting or self._pool.running:
            if self._stop.count:
                self._wind_down()
                break
            while waiting and self._pool.free:
                self._start(waiting.pop(0))
            ended = self._pool.poll()
            for one in ended:
                self._collect(one)
            if ended:
                waiting = self._waiting()
                self._keep(self._outcomes)
            expected = self._expected(self._outcomes)
            running = [self._specs[name] for name in self._pool.running]
            self._display.refresh(running, waiting, len(self._outcomes), expected)
            time.sleep(0 if ended else _POLL_SECONDS)
        return self._outcomes

    def _waiting(self) -> list[RunSpec[Key]]:
        """The runs to start next, in order. Results of earlier starts are taken in on the way."""
        named = set(self._pool.running)  # two keys may ask for the same run
        take_in(self._required, self._outcomes, self._runs_dir, running=named)
        waiting: list[RunSpec[Key]] = []
        for spec in self._required(self._outcomes):
            if spec.key not in self._outcomes and spec.name not in named:
                self._specs[spec.name] = spec
                waiting.append(spec)
                named.add(spec.name)
        return waiting

    def _start(self, spec: RunSpec[Key]) -> None:
        directory = self._runs_dir / spec.name
        settings = [word for key, value in spec.overrides.items() for word in flag_words(key, value)]
        arguments = (*self._command, spec.recipe_path, "--run", str(directory), *settings)
        self._display.started(spec)
        self._pool.start(Job(spec.name, directory, arguments))

    def _collect(self, ended: Ended) -> None:
        spec = self._specs[ended.job.name]
        outcome = read_outcome(spec, self._runs_dir / spec.name, ended)
        if self._stop.count and outcome.status == "failed":
            return  # it stopped because it was asked to; the next start continues it
        self._outcomes[spec.key] = outcome
        self._display.ended(spec, outcome, ended.seconds)

    def _wind_down(self) -> None:
        """Ask the workers to save and stop; a second signal, or too long a wait, kills them."""
        count = len(self._pool.running)
        self._display.line(f"Stopping: {count} worker(s) save a checkpoint (again to kill them at once).")
        self._pool.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._pool.running:
            if self._stop.count > 1 or time.monotonic() > deadline:
                self._pool.signal(signal.SIGKILL)
            for ended in self._pool.poll():
                self._collect(ended)
            time.sleep(_POLL_SECONDS)


def exit_status(console: Console, stop: StopRequest, *, failed: bool) -> int:
    """Of the command: 128 + N after signal N, which is told, else 1 where a run failed."""
    if stop.signal is None:
        return int(failed)
    console.print(told(stop.signal), style="yellow")
    return 128 + stop.signal


def take_in(
    required: Callable[[Mapping[Key, Outcome]], Sequence[RunSpec[Key]]],
    outcomes: dict[Key, Outcome],
    runs_dir: Path,
    *,
    running: Collection[str] = (),
) -> None:
    """Add to `outcomes` what earlier starts finished, until no more is asked for that they have."""
    fresh = True
    while fresh:
        fresh = False
        for spec in required(outcomes):
            if spec.key in outcomes or spec.name in running:
                continue
            earlier = read_earlier(spec, runs_dir / spec.name)
            if earlier:
                outcomes[spec.key] = earlier
                fresh = True


def flag_words(key: str, value: Any) -> list[str]:
    """A setting as the train command reads it: `--key value`, a list's members one after the other."""
    if isinstance(value, dict):
        members = [word for pair in value.items() for word in pair]
    else:
        members = list(value) if isinstance(value, list | tuple) else [value]
    return [f"--{key}", *(str(member) for member in members)]
