"""A run goes on with the form of its optimizer's passes (C++ or torch's operations) that it began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import config_for, final_tensors, run_training, write_text

from lowrise.checkpoint import CheckpointStore
from lowrise.config import RunConfig
from lowrise.errors import UsageError
from lowrise.linalg import passes

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)


@pytest.fixture(autouse=True)
def own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(passes.VARIABLE, raising=False)


def config(folder: Path, method: str, **more: Any) -> RunConfig:
    if not (folder / "text.jsonl").exists():
        write_text(folder / "text.jsonl")
    return config_for(folder, method, **{"schedule.name": "constant", "schedule.warmup": 2, **more})


def written(run: Path) -> tuple[str, list[str]]:
    """What the last checkpoint and the history say."""
    store = CheckpointStore(run / "checkpoints")
    facts = json.loads((run / "environment.json").read_text())
    last = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    return store.load(last).numbers["passes"], [entry["passes"] for entry in facts["history"]]


@needs_compiler
@pytest.mark.parametrize("method", ["sinkgd", "scale", "gwt"])
@pytest.mark.parametrize("began", ["torch", "native"])
def test_a_continued_run_has_the_bits_of_an_unbroken_one(
    method: str, began: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(passes.VARIABLE, began)
    run_training(config(tmp_path, method), tmp_path / "whole")
    run_training(config(tmp_path, method, **{"train.steps": 4}), tmp_path / "parts")
    monkeypatch.delenv(passes.VARIABLE)
    run_training(config(tmp_path, method), tmp_path / "parts")
    assert final_tensors(tmp_path / "parts", 8) == final_tensors(tmp_path / "whole", 8)
    assert written(tmp_path / "parts") == (began, [began, began])


@needs_compiler
def test_without_a_compiler_a_run_in_cpp_is_refused_until_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run_training(config(tmp_path, "sinkgd", **{"train.steps": 4}), run)
    assert written(run) == ("native", ["native"])
    monkeypatch.setenv("CXX", "")
    with pytest.raises(UsageError, match=r"were made in C\+\+ .*LOWRISE_PASSES=torch"):
        run_training(config(tmp_path, "sinkgd"), run)
    monkeypatch.setenv(passes.VARIABLE, "torch")
    run_training(config(tmp_path, "sinkgd"), run)
    assert written(run) == ("torch", ["native", "torch"])


def test_a_run_that_never_takes_them_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(passes.VARIABLE, "auto")
    monkeypatch.setattr(passes, "library", lambda source: pytest.fail("compiled"))
    run_training(config(tmp_path, "adamw", **{"train.steps": 4}), tmp_path / "run")
    assert written(tmp_path / "run") == ("torch", ["torch"])
