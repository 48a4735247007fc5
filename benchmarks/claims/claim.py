"""What every claim of docs/claims.md shares: its parts, its table, and a JSON with the gate it was held to.

A claim is one file here: `CLAIM` in words, `measure(quick)`, and `verdict(values)`, the gate as code. They
are committed before the first run; the run writes results/claims/NAME.json, which repeats hypothesis and
gate, so that a gate that was changed afterwards no longer fits its result. What the result means (`result`)
is written after it. `python docs/make_claims.py` makes the page of scripts and results.

    python benchmarks/claims/NAME.py [--quick] [--out FOLDER]

--quick takes seconds: fewer cases, the same gate; it writes nothing unless --out says where.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from common import RESULTS, publish, show

FOLDER = RESULTS / "claims"
CPU = torch.device("cpu")

Verdict = Literal["holds", "fails", "undecided"]
Group = Literal["Steps and their bounds", "Optimizer state", "Published numbers", "Losses"]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A claim in words. All but `result` are written before the run."""

    group: Group
    title: str
    """The claim, as one who makes it might say it."""
    source: str
    """Who makes it, where."""
    hypothesis: str
    """What is tested."""
    gate: str
    """When it holds, when it fails, when neither."""
    known: str
    """What was known of the outcome when the gate was written."""
    scope: str
    """What the verdict speaks of: it says nothing beyond."""
    result: str = ""
    """What came out, in words; `{name}` is the value of that name. Written after the run."""
    decides: str = ""
    """Where the verdict is "undecided": what would decide."""
    before: tuple[str, ...] = ()
    """Commands that make what the script reads, where that is not committed."""


@dataclass(frozen=True)
class Measured:
    """A table for readers and the values that the gate and the words look at."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: dict[str, Any]


def run(claim: Claim, measure: Callable[[bool], Measured], verdict: Callable[[Values], Verdict]) -> None:
    """The command of a script: measure, judge, print, write."""
    name = Path(inspect.getfile(measure)).stem
    parser = argparse.ArgumentParser(description=claim.title)
    parser.add_argument("--quick", action="store_true", help="seconds: fewer cases, nothing is written")
    parser.add_argument("--out", type=Path, help="folder of the JSON (benchmarks/results/claims)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = measure(options.quick)
    judged = verdict(measured.values)
    title = f"{claim.title} {judged.upper()} ({claim.scope})"
    folder = options.out or (None if options.quick else FOLDER)
    if folder is None:
        show(title, measured.columns, measured.rows)
        return
    record = {
        "hypothesis": claim.hypothesis,
        "gate": claim.gate,
        "verdict": judged,
        "values": measured.values,
        "quick": options.quick,
    }
    publish(name, title, measured.columns, measured.rows, record, CPU, folder)
