"""The files and tables of a comparison: JSON, Markdown, terminal; the HTML page is in `page.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lowrise.compare.about import in_one_line
from lowrise.compare.columns import COST, DIFFERENCE, QUALITY, RATIOS, Column, cells, published_cells
from lowrise.compare.page import to_html
from lowrise.compare.rows import Comparison
from lowrise.compare.stored import read_stored, stored
from lowrise.console import Console
from lowrise.files import write_whole


def write_comparison(
    directory: Path, comparison: Comparison, runs_dir: Path, environment: dict[str, Any]
) -> None:
    """Write `compare.json`, `compare.md` and `report.html` into `directory`."""
    write_numbers(directory, comparison, environment)
    write_whole(directory / "compare.md", to_markdown(comparison))
    stored_comparison, _ = read_comparison(directory / "compare.json")  # as `lowrise report` will see it
    write_whole(directory / "report.html", to_html(stored_comparison, runs_dir, environment))


def write_numbers(directory: Path, comparison: Comparison, environment: dict[str, Any]) -> None:
    """Write `compare.json`, all that the page is made of but the runs' curves."""
    directory.mkdir(parents=True, exist_ok=True)
    document = without_nan({"format": 2, **asdict(comparison), "environment": environment})
    write_whole(directory / "compare.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_comparison(path: Path) -> tuple[Comparison, dict[str, Any]]:
    """A comparison from its `compare.json`, and its environment. Raises `LowriseError` where it is damaged,
    or of a version that wrote other tables.
    """
    document = read_stored(path, "lowrise compare")
    return stored(Comparison, document, path), dict(document.get("environment", {}))


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(comparison: Comparison) -> str:
    """What was compared, the tables, the ratios to the first row, failures and notes."""

    def table(columns: Sequence[Column], *, others: bool = False) -> str:
        return markdown_table(*cells(comparison, columns, others=others))

    parts = [f"# Comparison at {comparison.budget}"]
    parts.append("\n".join(f"- {what}: {in_one_line(by)}" for what, by in comparison.about.items()))
    parts.append(table(QUALITY))
    if len(comparison.rows) > 1:
        parts += [f"Difference of the validation loss from {comparison.rows[0].label}:"]
        parts += [table(DIFFERENCE, others=True), *comparison.power]
    parts += ["Costs:", table(COST)]
    if len(comparison.rows) > 1:
        parts += [f"Ratios to {comparison.rows[0].label}:", table(RATIOS)]
    if comparison.published.rows:
        parts += [
            "Published perplexities of the same protocol:",
            markdown_table(*published_cells(comparison)),
        ]
    parts.append(comparison.published.note)
    failures = failure_lines(comparison)
    if failures:
        parts += ["Runs without a result:", "\n".join(f"- {line}" for line in failures)]
    parts += ["Notes:", "\n".join(f"- {note}" for note in comparison.notes)]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def failure_lines(comparison: Comparison) -> list[str]:
    """A line a diverged or failed run: its name and the first line of its error."""
    return [
        f"{run['name']}: {run['status']}" + (f": {run['error'].splitlines()[0]}" if run["error"] else "")
        for run in comparison.runs
        if run["status"] in ("diverged", "failed")
    ]


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The tables one below the other, each within 80 columns; then failures and the notes on rows."""
    parts = [(f"Quality at {comparison.budget}", cells(comparison, QUALITY))]
    if len(comparison.rows) > 1:
        first = comparison.rows[0].label
        parts.append((f"Difference from {first}", cells(comparison, DIFFERENCE, others=True)))
    parts.append(("Cost", cells(comparison, [one for one in COST if one[0] != "tokens"])))
    if len(comparison.rows) > 1:
        parts.append((f"Ratios to {first}", cells(comparison, RATIOS)))
    if comparison.published.rows:
        parts.append(("Published perplexities of the same protocol", published_cells(comparison)))
    for title, (header, rows) in parts:
        table = Table(
            title=title,
            title_justify="left",
            header_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for i, name in enumerate(header):
            long = name in ("recipe", "best lr", "source", "verdict")
            table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=not long)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    particular = comparison.notes[len(comparison.rules) :]
    for line in [*comparison.power, *failure_lines(comparison), *particular, comparison.published.note]:
        console.print(Text.assemble(("•", "yellow"), f" {line}"))
