"""The numbers of metrics.jsonl as TensorBoard events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def open_board(folder: Path, step: int) -> Iterator[SummaryWriter]:
    """A writer; events of a continued run after `step` are replaced."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=step + 1 if step else None) as board:
        yield board


def add_record(board: SummaryWriter, record: dict[str, Any]) -> None:
    """Every number of one line of metrics.jsonl, those of matrices under their names."""
    for key, value in record.items():
        if isinstance(value, int | float) and key != "step":
            board.add_scalar(key, value, record["step"])
    for name, values in record.get("matrices", {}).items():
        for key, value in values.items():
            board.add_scalar(f"{key}/{name}", value, record["step"])
