"""What a person sees while a run goes: a live bar on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lowrise.console import Console
from lowrise.inference.evaluate import EvalResult


class Display:
    """Progress of one run; a context manager."""

    def __init__(self, console: Console, total_steps: int, seconds_between_lines: float = 10.0) -> None:
        self.console = console
        self.total = total_steps
        self.between = seconds_between_lines
        self._last_line = -math.inf
        self._val_loss: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("step", total=total_steps, numbers="")

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """One line that stays."""
        self.console.print(text, style=style, soft_wrap=True)

    def table(self, text: str) -> None:
        """Lines of columns, cut at the width of the screen."""
        self.console.print(text, no_wrap=True, overflow="ellipsis")

    def evaluated(
        self, step: int, result: EvalResult, extra: Mapping[str, float] | None = None, of: str = ""
    ) -> None:
        """`extra`: losses of further texts by their names. `of`: what this is of, where a step has two."""
        self._val_loss = result.loss
        others = "".join(f"  {name} {loss:.4f}" for name, loss in (extra or {}).items())
        self.say(
            f"step {step:>6}  validation loss {result.loss:.4f}  perplexity {result.perplexity:.2f}{others}"
            f"{of and f'  ({of})'}"
        )

    def stepped(
        self, step: int, loss: float, lr: float, tokens_per_second: float, seconds_per_step: float
    ) -> None:
        """The newest numbers."""
        val = "" if self._val_loss is None else f"  val {self._val_loss:.3f}"
        numbers = f"loss {loss:.3f}{val}  {tokens_per_second:,.0f} tok/s  lr {lr:.2e}"
        if self.console.is_terminal:
            self._progress.update(self._task, completed=step, numbers=numbers)
        elif time.monotonic() - self._last_line >= self.between or step == self.total:
            self._last_line = time.monotonic()
            left = (self.total - step) * seconds_per_step
            self.say(f"step {step:>6}/{self.total}  {numbers}  ETA {int(left) // 60}:{int(left) % 60:02d}")
