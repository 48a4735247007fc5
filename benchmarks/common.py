"""What every benchmark shares: timing, one table, the same as JSON with hardware and versions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from lowrise.console import Console
from lowrise.runs.environment import describe

RESULTS = Path(__file__).parent / "results"


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's queue drained before and after."""
    _drain(device)
    started = time.perf_counter()
    work()
    _drain(device)
    return time.perf_counter() - started


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the table."""
    table = Table(*columns, title=title, title_justify="left", box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


def publish(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    record: dict[str, Any],
    device: torch.device,
    folder: Path = RESULTS,
) -> Path:
    """Print the table and write `FOLDER/NAME.json` with the record, the table and the environment."""
    show(title, columns, rows)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    content = {"title": title, "columns": list(columns), "rows": [list(r) for r in rows], **record}
    path.write_text(
        json.dumps(content | {"environment": describe(device)}, indent=1) + "\n", encoding="utf-8"
    )
    return path


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
