"""What a comparison shows while it runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowrise.compare.outcomes import Outcome, RunSpec
from lowrise.console import Console
from lowrise.files import is_known
from lowrise.report.formatting import UNKNOWN, duration, learning_rate, number, si
from lowrise.runs.history import last_metrics

_REFRESH_SECONDS, _PLAIN_SECONDS = 1.0, 60.0
_MARKS = {"completed": ("done", "green"), "diverged": ("diverged", "yellow"), "failed": ("failed", "red")}


class Display:
    """Progress of all runs, read from their `metrics.jsonl`; a context manager around the pool's loop."""

    def __init__(self, console: Console, runs_dir: Path) -> None:
        self._console = console
        self._runs_dir = runs_dir
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._begin = time.monotonic()
        self._next = 0.0
        self._flops_before: dict[str, float] = {}  # what a resumed run had done before this session
        self._flops_ended = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str | Text, style: str | None = None) -> None:
        """One line above the live table."""
        self._console.print(text, style=style, soft_wrap=True)

    def started(self, spec: RunSpec[Any]) -> None:
        step = self._metrics(spec).get("step", 0)
        self._flops_before[spec.name] = min(1.0, step / spec.steps) * spec.flops
        continued = f" (continues after step {step})" if step else ""
        self.line(f"started   {spec.name}{continued}")

    def ended(self, spec: RunSpec[Any], outcome: Outcome, seconds: float) -> None:
        self._flops_ended += spec.flops - self._flops_before.get(spec.name, 0.0)
        loss = f"val loss {number(outcome.val_loss)}  " if outcome.val_loss is not None else ""
        reason = f": {outcome.error.splitlines()[0]}" if outcome.error else ""
        self.line(Text.assemble(_MARKS[outcome.status], f"  {spec.name}  {loss}{duration(seconds)}{reason}"))

    def refresh(
        self, running: Sequence[RunSpec[Any]], waiting: Sequence[RunSpec[Any]], done: int, expected: int
    ) -> None:
        """Redraw, at most once a second (plain: one line a minute)."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REFRESH_SECONDS if self._live else _PLAIN_SECONDS)
        metrics = {spec.name: self._metrics(spec) for spec in running}
        fractions = {spec.name: min(1.0, metrics[spec.name].get("step", 0) / spec.steps) for spec in running}
        left = sum(spec.flops * (1 - fractions[spec.name]) for spec in running) + sum(
            s.flops for s in waiting
        )
        moved = sum(spec.flops * fractions[spec.name] - self._flops_before[spec.name] for spec in running)
        known_share = max(1, expected - done) / max(1, len(running) + len(waiting))  # seeds not yet named
        elapsed = now - self._begin
        rate = (self._flops_ended + max(0.0, moved)) / elapsed if elapsed > 3 else 0.0
        eta = duration(left * known_share / rate) if rate > 0 else UNKNOWN
        summary = f"{done} of {expected} runs, {len(running)} running, ETA {eta}"
        if self._live:
            self._live.update(Group(Text(summary), self._table(running, metrics, fractions)), refresh=True)
        elif running:
            self.line(summary)

    def _metrics(self, spec: RunSpec[Any]) -> dict[str, float]:
        newest = last_metrics(self._runs_dir / spec.name / "metrics.jsonl")
        return {key: value for key, value in newest.items() if is_known(value)}

    def _table(
        self,
        running: Sequence[RunSpec[Any]],
        metrics: dict[str, dict[str, float]],
        fractions: dict[str, float],
    ) -> Table:
        table = Table(box=None, pad_edge=False)
        for header in ("run", "progress", "step", "loss", "val loss", "lr", "tokens/s"):
            table.add_column(header, justify="left" if header in ("run", "progress") else "right")
        for spec in running:
            now = metrics[spec.name]
            table.add_row(
                Text(spec.name, overflow="ellipsis", no_wrap=True),
                ProgressBar(total=1.0, completed=fractions[spec.name], width=20),
                f"{now.get('step', 0):.0f}/{spec.steps}",
                number(now.get("loss"), 3),
                number(now.get("val_loss"), 3),
                learning_rate(now.get("lr")),
                si(now.get("tokens_per_second")),
            )
        return table
