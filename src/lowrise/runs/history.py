"""Reading a run directory: `summary.json`, `metrics.jsonl`, `config.toml`, `environment.json`.

A run may be half finished, killed in the middle of a line, or resumed: what can be read is read, and what
could not is named in `Run.problems` instead of raising.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrise.errors import UsageError
from lowrise.files import is_known

_FILES = ("summary.json", "metrics.jsonl", "config.toml", "environment.json")
_TAIL_BYTES = 1 << 18  # a telemetry line of a large model has some ten thousand characters


@dataclass(frozen=True)
class Run:
    """What a run directory tells. `metrics` has one object a step, in the order of steps."""

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    sample: str = ""
    problems: tuple[str, ...] = ()

    def column(self, *keys: str) -> tuple[list[float], ...]:
        """The values of `keys` at the steps where every one of them is a finite number."""
        rows = [row for row in self.metrics if all(is_known(row.get(key)) for key in keys)]
        return tuple([float(row[key]) for row in rows] for key in keys)


def has_run_files(path: Path) -> bool:
    """Whether a folder holds any of a run's files."""
    return any((path / name).is_file() for name in _FILES)


def read_run(run_dir: str | Path) -> Run:
    """Read what there is. Raises `UsageError` if `run_dir` holds none of a run's files."""
    path = Path(run_dir)
    if not has_run_files(path):
        raise UsageError(
            f"{path} is not a run directory: it has none of {', '.join(_FILES)}. Name the DIR of --run."
        )
    problems: list[str] = []
    summary = _read_object(path / "summary.json", problems)
    metrics = _read_metrics(path / "metrics.jsonl", problems)
    environment = _read_object(path / "environment.json", problems)
    config = _text(path / "config.toml", problems)
    sample = _sample(path, summary, problems)
    return Run(path, summary, metrics, config, environment, sample, tuple(problems))


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """`summary.json` as a dictionary; `None` where it is missing or damaged."""
    problems: list[str] = []
    summary = _read_object(run_dir / "summary.json", problems)
    return None if problems else summary


def judged(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary with the numbers that decide as `val_loss`, `val_perplexity` and so on: those of the
    averaged weights where the recipe keeps an average (`[ema]`), since that is what such a run is for.
    The last weights' numbers are then under `raw_val_loss`, ...
    """
    averaged = {key.removeprefix("ema_"): n for key, n in summary.items() if key.startswith("ema_val_")}
    raw = {f"raw_{key}": summary.get(key) for key in averaged}
    return summary | raw | averaged


def last_metrics(path: Path) -> dict[str, Any]:
    """The keys of the last lines of a growing `metrics.jsonl`, newest value of each; reads its end only."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    if size > _TAIL_BYTES:
        lines = lines[1:]
    newest: dict[str, Any] = {}
    for row in (_parse(line) for line in lines[-50:]):
        newest.update(row or {})
    return newest


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")
        return {}
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is damaged ({error})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} does not hold an object")
        return {}
    return value


def _text(path: Path, problems: list[str]) -> str:
    if not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")
        return ""


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip():
                yield line


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """One object a step: the lines of one step are merged, and steps repeated after a resume replace the
    earlier ones.
    """
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return []
    rows: dict[int, dict[str, Any]] = {}
    last, damaged = -1, 0
    for line in _lines(path):
        row = _parse(line)
        if row is None:
            damaged += 1
            continue
        step = row["step"]
        if (
            step < last
        ):  # resumed from a checkpoint: what was logged after it never happened for these weights
            rows = {earlier: kept for earlier, kept in rows.items() if earlier < step}
        rows.setdefault(step, {}).update(row)
        last = step
    if damaged:
        problems.append(f"{damaged} line(s) of {path.name} could not be read and were left out")
    return [rows[step] for step in sorted(rows)]


def _sample(path: Path, summary: dict[str, Any], problems: list[str]) -> str:
    """The generated text: `summary.json`'s `sample`, else `sample.txt`."""
    sample = summary.get("sample")
    if isinstance(sample, str) and sample:
        return sample
    return _text(path / "sample.txt", problems)
