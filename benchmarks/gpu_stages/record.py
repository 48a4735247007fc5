"""A stage's JSON: rows, written whole after every one, so that an early end loses nothing."""

from __future__ import annotations

import gc
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lowrise.files import write_whole


class Record:
    """Rows of one stage; none begins after `until` (seconds since the epoch)."""

    def __init__(self, path: Path, until: float) -> None:
        self.path, self.until = path, until
        self.content: dict[str, Any] = {"rows": [], "left_out": []}

    def note(self, **values: Any) -> None:
        """Facts of the stage as a whole."""
        self.content |= values
        self.write()

    @contextmanager
    def row(self, name: str, **values: Any) -> Iterator[dict[str, Any]]:
        """A row to fill in. What is raised becomes its "error": the other rows count all the same."""
        row: dict[str, Any] = {"name": name, **values}
        began = time.perf_counter()
        try:
            yield row
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:600]
        row["stage_seconds"] = round(time.perf_counter() - began, 3)
        self.content["rows"].append(row)
        self.write()
        print(f"  {name}: {row.get('error', 'done')} ({row['stage_seconds']:.1f} s)", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def in_time(self, names: Sequence[str]) -> Iterator[str]:
        """Names one after the other; those that time does not reach are written down."""
        for i, name in enumerate(names):
            if time.time() > self.until:
                self.note(left_out=[*self.content["left_out"], *names[i:]])
                return
            yield name

    @property
    def seconds_left(self) -> float:
        return self.until - time.time()

    def write(self) -> None:
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A stage's JSON; None where it has written none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def failures(folder: Path, names: Sequence[str]) -> list[str]:
    """A line for every row that raised or whose check did not hold."""
    found = []
    for name in names:
        content = read(folder, name) or {"rows": []}
        for row in [
            *content["rows"],
            {"name": "the stage", **{k: content[k] for k in ("error",) if k in content}},
        ]:
            broken = [key for key, value in row.items() if value is False]
            if broken or "error" in row:
                found.append(f"{name}, {row['name']}: {row.get('error') or 'not ' + ', '.join(broken)}")
    return found


def driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None
