"""Measured rates: from a table of `lowrise bench`, from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowrise.errors import UsageError
from lowrise.runs.rates import measured_rates


def run_folder(tmp_path: Path, ranks: int = 2, **more: Any) -> Path:
    summary = {"method": "muon", "tokens": 1000, "tokens_per_second": 100.0, "train_flops": 5e12}
    (tmp_path / "summary.json").write_text(json.dumps(summary | more))
    (tmp_path / "environment.json").write_text(json.dumps({"ranks": ranks}))
    return tmp_path


def test_each_method_of_a_bench_has_its_own(tmp_path: Path) -> None:
    rows = [
        {"method": "adamw", "flops_per_update": 3e9, "step_ms": 150.0},
        {"method": "muon", "error": "its process was killed, perhaps for memory"},
        {"method": "spectron", "flops_per_update": 1e9, "step_ms": 100.0},
    ]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"rows": rows}))
    assert measured_rates(file) == {"adamw": pytest.approx(2e10), "spectron": pytest.approx(1e10)}


def test_a_run_has_one_by_its_devices(tmp_path: Path) -> None:
    """5e12 FLOPs in 10 seconds on two devices."""
    assert measured_rates(run_folder(tmp_path)) == {"muon": pytest.approx(2.5e11)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "not there"),
        ("{", "cannot be read"),
        ("[]", "no measured rate"),
        ('{"rows": 3}', "no measured"),
    ],
)
def test_what_holds_no_rate(text: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=sentence) as refused:
        measured_rates(file)
    assert "lowrise bench --out" in str(refused.value)


def test_a_run_that_has_not_ended(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rate yet"):
        measured_rates(run_folder(tmp_path, tokens_per_second=None))
