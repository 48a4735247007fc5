"""Points of a scaling study: runs as (method, FLOPs, parameters, tokens, loss), from tables or run folders.

| column | also called | |
|---|---|---|
| `loss` | val_loss, final_loss | nats a token (any unit, if all have the same) |
| `params` | n, parameters, model_size, num_params | needed |
| `tokens` | d, num_tokens, training_tokens | one of these two is needed; the other follows from C = 6 N D |
| `flops` | c, compute, training_flop, train_flops | |
| `budget` | compute_budget | the isoFLOP group; without it, FLOPs within a fifth of a neighbour's are one |
| `method` | label, recipe, optimizer | without it, all points are of one |
| `seed`, `name`, `status` | | a status other than "completed" leaves a row out |
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowrise.errors import UsageError
from lowrise.files import is_known, read_json
from lowrise.runs.history import judged, read_summary

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # Kaplan et al. 2020, section 2.1, where a table has no FLOPs
NEIGHBOURS = 1.2
_NAMES = {
    "loss": "loss val_loss final_loss validation_loss",
    "params": "params n parameters model_size num_params params_non_embedding",
    "tokens": "tokens d num_tokens training_tokens train_tokens",
    "flops": "flops c compute training_flop training_flops train_flops flop",
    "budget": "budget compute_budget",
    "method": "method label recipe optimizer",
    "params_total": "params_total",
    "status": "status",
    "name": "name",
}
_COLUMN = {word: column for column, words in _NAMES.items() for word in words.split()}
_TABLE = "Write columns params, tokens (or flops) and loss, and method, budget where there are several."


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trained model."""

    method: str
    flops: float
    params: float
    tokens: float
    loss: float
    budget: float
    """Of its isoFLOP group; FLOPs may differ a little from it."""


@dataclass(frozen=True)
class Points:
    """All points of one method, as arrays of one length, sorted by budget and size."""

    method: str
    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    budget: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)


def by_method(points: Iterable[Point]) -> dict[str, Points]:
    """The points of each method, methods in the order of their first point."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.method, []).append(point)
    return {method: _arrays(method, group) for method, group in groups.items()}


def _arrays(method: str, group: list[Point]) -> Points:
    group = sorted(group, key=lambda point: (point.budget, point.params))
    columns = [np.array([getattr(p, name) for p in group], dtype=np.float64) for name in _ARRAYS]
    return Points(method, *columns)


_ARRAYS = ("flops", "params", "tokens", "loss", "budget")


def read_points(sources: Sequence[str], params: str = "non_embedding") -> tuple[list[Point], list[str]]:
    """The points of tables, sweeps and runs, and a line about each row that was left out.

    `params`: "non_embedding" or "total", for runs and sweeps. Of several runs that differ in their learning
    rate alone, the one with the lowest loss counts. Raises `UsageError` that names file and row.
    """
    if not sources:
        raise UsageError("There are no points: give a CSV or JSON table, the folder of a sweep, or runs.")
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for source in sources:
        rows += _rows(Path(source).expanduser(), params)
    points: list[Point] = []
    left_out: list[str] = []
    best: dict[tuple[Any, ...], Point] = {}
    for place, row in rows:
        point = _point(place, row, left_out)
        if point is None:
            continue
        if "lr" not in row:
            points.append(point)
            continue
        key = (point.method, point.budget, point.params, point.tokens, row.get("seed"))
        if key not in best or point.loss < best[key].loss:
            best[key] = point
    points += best.values()
    if not points:
        raise UsageError(f"{', '.join(sources)}: no row has a loss. {' '.join(left_out[:3])}".strip())
    return _grouped(points), left_out


def _rows(path: Path, params: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(where it stands, columns) of each row of one source."""
    if path.is_dir():
        if (path / "sweep.json").is_file():
            return _of_json(path / "sweep.json", params)
        if (path / "summary.json").is_file():
            return [(str(path), _of_run(path, params))]
        raise UsageError(f"{path} is no sweep (sweep.json) and no run (summary.json): name one, or a table.")
    if path.suffix.lower() == ".json":
        return _of_json(path, params)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"There is no table at {path}: give a CSV or JSON file, a sweep or a run.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text ({error}): give a CSV table in UTF-8.") from None
    reader = csv.reader(io.StringIO(text))
    lines = [row for row in reader if any(cell.strip() for cell in row)]
    if not lines:
        raise UsageError(f"{path} is empty. {_TABLE}")
    names = lines[0]
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(names):
            raise UsageError(
                f"{path}, row {number}: {len(cells)} cells under {len(names)} column names; write one each."
            )
    return [
        (f"{path}, row {number}", _columns(dict(zip(names, cells, strict=True)), params))
        for number, cells in enumerate(lines[1:], start=2)
    ]


def _of_json(path: Path, params: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise UsageError(f"There is no table at {path}: give a CSV or JSON file, a sweep or a run.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}).") from None
    rows = value.get("points") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f'{path} holds no list of objects, nor {{"points": [...]}}. {_TABLE}')
    return [(f"{path}, point {i}", _columns(row, params)) for i, row in enumerate(rows, start=1)]


def _of_run(path: Path, params: str) -> Mapping[str, Any]:
    summary = judged(read_summary(path) or {})
    return {
        "method": summary.get("method"),
        "flops": summary.get("train_flops"),
        "params": summary.get(f"params_{params}"),
        "tokens": summary.get("tokens"),
        "loss": summary.get("val_loss"),
        "status": summary.get("status"),
    }


def _columns(row: Mapping[str, Any], params: str) -> dict[str, Any]:
    """A row under our names; what has none of them is kept under its own."""
    squashed = {re.sub(r"[^a-z0-9]+", "_", str(key).strip().lower()).strip("_"): v for key, v in row.items()}
    columns = {key: value for key, value in squashed.items() if key not in _COLUMN}
    for word, column in _COLUMN.items():  # the first of several names wins
        if word in squashed and column not in columns:
            columns[column] = squashed[word]
    if params == "total":
        columns["params"] = columns.get("params_total")
    return columns


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value.replace("_", ""))
        except ValueError:
            return None
    return float(value) if is_known(value) else None


def _point(place: str, row: Mapping[str, Any], left_out: list[str]) -> Point | None:
    """The point of a row; None, and a line in `left_out`, where its run has no loss."""
    status = row.get("status")
    if status not in (None, "", "completed"):
        left_out.append(f"{row.get('name') or place}: {status}.")
        return None
    if "loss" not in row or "params" not in row or not ("tokens" in row or "flops" in row):
        missing = [name for name in ("loss", "params") if name not in row] or ["tokens (or flops)"]
        raise UsageError(f"{place}: there is no column {' and '.join(missing)}. {_TABLE}")
    if row["loss"] in (None, "", "nan", "NaN"):
        left_out.append(f"{row.get('name') or place}: no loss.")
        return None
    values: dict[str, float | None] = {}
    for name in _ARRAYS:
        value = values[name] = _number(row.get(name))
        given = row.get(name) not in (None, "")
        if (given or name in ("loss", "params")) and (value is None or value <= 0):
            raise UsageError(f"{place}: {name} is {row.get(name)!r}, and must be a number above 0.")
    params, tokens, flops = values["params"], values["tokens"], values["flops"]
    per_token = FLOPS_PER_PARAMETER_AND_TOKEN * (params or math.nan)
    if tokens is None and flops is None:
        raise UsageError(f"{place}: tokens and flops are both empty, and one of them is needed.")
    values["tokens"] = flops / per_token if tokens is None and flops is not None else tokens
    values["flops"] = per_token * tokens if flops is None and tokens is not None else flops
    budget = values.pop("budget")
    known = {name: value for name, value in values.items() if value is not None}
    return Point(method=str(row.get("method") or "all"), budget=budget or math.nan, **known)


def _grouped(points: list[Point]) -> list[Point]:
    """Points without a budget get one: FLOPs whose neighbours lie within a fifth are one group, and its
    budget is their geometric mean."""
    without = sorted((p for p in points if math.isnan(p.budget)), key=lambda point: point.flops)
    groups: list[list[Point]] = []
    for point in without:
        if groups and point.flops <= NEIGHBOURS * groups[-1][-1].flops:
            groups[-1].append(point)
        else:
            groups.append([point])
    named: dict[int, float] = {}
    for group in groups:
        budget = float(f"{math.exp(np.mean([math.log(point.flops) for point in group])):.4g}")
        named |= {id(point): budget for point in group}
    return [replace(point, budget=named.get(id(point), point.budget)) for point in points]


def to_csv(points: Iterable[Point]) -> str:
    """The table that `read_points` takes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("method", "budget", "flops", "params", "tokens", "loss"))
    for p in points:
        numbers = (p.budget, p.flops, p.params, p.tokens, p.loss)
        writer.writerow((p.method, *map(_exact, numbers)))
    return stream.getvalue()


def _exact(value: float) -> str:
    """Ten digits where they are all there is, else as many as give the same number again."""
    short = f"{value:.10g}"
    return short if float(short) == value else repr(float(value))
