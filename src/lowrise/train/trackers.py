"""What follows a run from outside: an experiment tracker, a notebook's plot, TensorBoard.

    class Print(Tracker):
        def on_log(self, record):
            print(record["step"], record["loss"])

    train(config, corpus, directory, console, trackers=[Print()])

Trackers are called by rank 0 alone, between updates, in the order of the list. Records are the lines of
metrics.jsonl (docs/runs.md); a tracker must not change them. What it raises ends the run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrise.files import naming

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Override what is wanted; nothing happens by default."""

    def on_start(self, config: Mapping[str, Any], step: int) -> None:
        """The run begins, or goes on after update `step`, with this configuration (nested plain values)."""

    def on_log(self, record: Mapping[str, Any]) -> None:
        """An update was logged: `log.every`, `log.telemetry_every` and the last one."""

    def on_evaluate(self, record: Mapping[str, Any]) -> None:
        """An evaluation is done."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run has ended; `summary` is summary.json, with `status` completed, interrupted or failed."""


class Trackers(Tracker):
    """Several as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def on_start(self, config: Mapping[str, Any], step: int) -> None:
        for tracker in self.trackers:
            tracker.on_start(config, step)

    def on_log(self, record: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.on_log(record)

    def on_evaluate(self, record: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.on_evaluate(record)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.on_end(summary)


class TensorBoard(Tracker):
    """The numbers of metrics.jsonl as TensorBoard events."""

    def __init__(self, writer: SummaryWriter, folder: Path) -> None:
        self._writer = writer
        self._folder = folder

    def on_log(self, record: Mapping[str, Any]) -> None:
        """Every number of the line, those of matrices under their names."""
        with naming(self._folder):
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self._writer.add_scalar(key, value, record["step"])
            for name, values in record.get("matrices", {}).items():
                for key, value in values.items():
                    self._writer.add_scalar(f"{key}/{name}", value, record["step"])

    def on_evaluate(self, record: Mapping[str, Any]) -> None:
        self.on_log(record)


@contextmanager
def open_tensorboard(folder: Path, step: int) -> Iterator[TensorBoard]:
    """A writer; events of a continued run after `step` are replaced."""
    from torch.utils.tensorboard import SummaryWriter

    with _errors_of_the_writer_told_once():
        with naming(folder):
            writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        try:
            yield TensorBoard(writer, folder)
        except BaseException:
            with suppress(OSError):  # what ended the run is what is told
                writer.close()
            raise
        with naming(folder):
            writer.close()


@contextmanager
def _errors_of_the_writer_told_once() -> Iterator[None]:
    """TensorBoard writes in a thread and raises its errors again at the next call; the thread's own stack is
    kept from the screen."""
    shown = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            shown(failed)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = shown
