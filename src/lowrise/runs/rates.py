"""Rates that were measured: FLOPs per second that one device keeps up in training, by method.

From the JSON of `lowrise bench --out`, or from the folder of a run:

  rate = FLOPs of an update, the optimizer's included / seconds of an update / devices

A rate belongs to its method: of another method's matrices and optimizer it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrise.errors import UsageError
from lowrise.files import is_known, read_json
from lowrise.runs.history import read_run

_REMEDY = "give the JSON that lowrise bench --out TABLE.md writes beside the table, or the folder of a run"


def measured_rates(path: Path) -> dict[str, float]:
    """Method -> FLOPs per second of one device. Raises `UsageError` for what holds no rate."""
    path = path.expanduser()
    rates = _of_run(path) if path.is_dir() else _of_bench(path)
    if not rates:
        raise UsageError(f"--rate {path} holds no measured rate: {_REMEDY}.")
    return rates


def _of_bench(path: Path) -> dict[str, float]:
    try:
        told = read_json(path)
    except FileNotFoundError:
        raise UsageError(f"--rate {path} is not there: {_REMEDY}.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--rate {path} cannot be read as JSON ({error}): {_REMEDY}.") from None
    rows = told.get("rows") if isinstance(told, dict) else None
    rates: dict[str, float] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("method"), str):
            rate = _rate(row.get("flops_per_update"), row.get("step_ms"), 1000)
            rates |= {} if rate is None else {row["method"]: rate}
    return rates


def _of_run(folder: Path) -> dict[str, float]:
    run = read_run(folder)
    summary: Mapping[str, Any] = run.summary
    method, tokens, per_second = (summary.get(k) for k in ("method", "tokens", "tokens_per_second"))
    if not (isinstance(method, str) and is_known(tokens) and is_known(per_second) and per_second > 0):
        raise UsageError(
            f"--rate {folder} has no rate yet in its summary.json: let the run end, or {_REMEDY}."
        )
    ranks = run.environment.get("ranks")
    devices = ranks if is_known(ranks) and ranks >= 1 else 1
    rate = _rate(summary.get("train_flops"), tokens / per_second * devices, 1)
    return {} if rate is None else {method: rate}


def _rate(flops: object, time: object, units_a_second: int) -> float | None:
    known = is_known(flops) and is_known(time) and flops > 0 and time > 0
    return float(flops) * units_a_second / float(time) if known else None  # type: ignore[arg-type]
