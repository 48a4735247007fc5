"""`benchmarks/gpu.sh` runs from end to end on a CPU, in small, and an early end loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import needs_fsdp

ROOT = Path(__file__).resolve().parents[3]
METHODS = ("adamw", "spectron", "tsvd", "galore")
# The stages work, however busy the machine is; pytest's own limit ends a test that hangs.
NO_LIMIT = "1000000"
SMALL = ("--device", "cpu", "--preset", "nano")


def gpu(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(out), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "".join(f"Line {i} of {i * i % 977} says {i % 31}.\n" for i in range(9000)), encoding="utf-8"
    )
    return path


def stage(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.timeout(7200)
@needs_fsdp
def test_every_stage_runs_on_a_cpu(text: Path, tmp_path: Path) -> None:
    ended = gpu(tmp_path, *SMALL, "--seconds", NO_LIMIT, "--text", str(text), "--methods", *METHODS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert stage(tmp_path, "tests")["skipped"]
    for row in stage(tmp_path, "methods")["rows"]:
        assert row["finite"], row
        assert row["resumed_to_the_bit"], row
    assert {row["name"] for row in stage(tmp_path, "methods")["rows"]} == set(METHODS)
    assert {row["name"] for row in stage(tmp_path, "mfu")["rows"]} == {"dense nano", "factored nano"}
    steps = {row["name"]: row["ratio"] for row in stage(tmp_path, "steps")["rows"]}
    assert steps.pop("torch AdamW fused") == 1
    assert steps.keys() == set(METHODS)
    for row in stage(tmp_path, "fsdp")["rows"]:
        assert row["as_without_fsdp"], row
        assert row["resumed_to_the_bit"], row
    assert len(stage(tmp_path, "fsdp")["rows"]) == 2
    trained = {row["name"]: row for row in stage(tmp_path, "text")["rows"]}
    assert trained.keys() == {"adamw", "spectron"}
    assert len({row["tokens"] for row in trained.values()}) == 1
    assert all(row["val_loss"] < 6 for row in trained.values())  # log(512) is 6.24
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("\n## ") == 6
    assert "failed" not in table
    assert "torch 2." in table


def test_what_time_does_not_reach_is_written_down(tmp_path: Path) -> None:
    stage_of = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "stage", "steps", *SMALL]
    command = [*stage_of, "--out", str(tmp_path), "--until", "0", "--work", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--methods", "adamw"], env=environment, check=True, timeout=120)
    assert stage(tmp_path, "steps")["left_out"] == ["torch AdamW fused", "adamw"]


def test_a_text_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ended = gpu(tmp_path, *SMALL, "--text", str(tmp_path / "none.txt"))
    assert ended.returncode == 2
    assert "none.txt is no file" in ended.stderr
    assert "Traceback" not in ended.stderr
