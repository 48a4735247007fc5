"""An audit on a terminal: one line for each matrix, whole at 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lowrise.audit.measure import Audited
from lowrise.audit.source import Source
from lowrise.audit.summary import verdict
from lowrise.console import Console, narrow_table
from lowrise.report.formatting import UNKNOWN, scientific


def title(folder: Path, source: Source) -> str:
    """What was looked at, in one line."""
    method = f", {source.method}" if source.method else ""
    step = f", step {source.step:,}" if source.step is not None else ""
    return f"{folder}: {source.kind}{method}{step}"


def header(energy: float) -> tuple[str, ...]:
    """Of the table's columns."""
    share = f"{100 * energy:g}%"
    return ("matrix", "shape", "rank", "eff.", share, "waste", "norm", "stable", "A/B", "cond.", "s1/s2")


def cells(matrix: Audited, name: str) -> tuple[str, ...]:
    """One row."""
    rank = f"{matrix.rank}" if matrix.factored else f"({matrix.rank})"
    return (
        name,
        f"{matrix.rows}x{matrix.columns}",
        rank,
        short(matrix.effective_rank),
        short(matrix.energy_rank),
        short(matrix.wasted_rank),
        short(matrix.spectral_norm),
        short(matrix.stable_rank),
        short(matrix.balance),
        short(matrix.condition),
        short(matrix.spike),
    )


def show(folder: Path, source: Source, matrices: Sequence[Audited], energy: float, console: Console) -> None:
    """The table, a line that explains it, the verdict."""
    console.print(title(folder, source), style="bold", soft_wrap=True)
    table = narrow_table()
    for i, column in enumerate(header(energy)):
        # Names give way, numbers never.
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for matrix, name in zip(matrices, short_names([m.name for m in matrices]), strict=True):
        table.add_row(*cells(matrix, name))
    console.print(table)
    console.print(
        "(rank): dense; eff.: effective rank; A/B: ratio of the factors' norms; cond.: of the worse factor",
        soft_wrap=True,
    )
    for sentence in verdict(matrices, energy):
        console.print(sentence, soft_wrap=True)


def short(value: float | None) -> str:
    """Three digits, two where the exponent is written."""
    if value is None:
        return UNKNOWN
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"
    return scientific(value, 2)


def short_names(names: Sequence[str]) -> list[str]:
    """The first number and the last part of each name, such as 3.q_proj; more parts where several would be
    alike.
    """
    shown = {name: _ending(name, 1) for name in names}
    for count in range(2, 1 + max((name.count(".") for name in names), default=0)):
        times = Counter(shown.values())
        shown = {name: _ending(name, count) if times[text] > 1 else text for name, text in shown.items()}
    times = Counter(shown.values())
    return [name if times[shown[name]] > 1 else shown[name] for name in names]


def _ending(name: str, count: int) -> str:
    """The last `count` parts, behind the first number of those before them."""
    parts = name.split(".")
    return ".".join([*[part for part in parts[:-count] if part.isdigit()][:1], *parts[-count:]])
