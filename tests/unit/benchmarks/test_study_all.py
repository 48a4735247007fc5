"""`benchmarks/study/all.sh` asks `lowrise compare` for every method at three budgets of size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrise.compare.options import CompareConfig
from lowrise.compare.plan import build_plan
from lowrise.config import load
from lowrise.flags import parse
from lowrise.methods import METHODS
from lowrise.runs.plan import plan_run

ROOT = Path(__file__).resolve().parents[3]
BUDGETS = ("params=232k", "inference=480kB", "bytes=1.5MB")


@pytest.fixture
def asked(tmp_path: Path):
    """Calls the script with a stand-in for `lowrise`, which writes its words down and ends with the k-th
    status at the k-th call; returns the script's own status and the words of each call."""

    def call(*words: str, statuses: tuple[int, ...] = (0, 0, 0)) -> tuple[int, list[list[str]]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        stand_in = tmp_path / "lowrise"
        ends = " ".join(map(str, statuses))
        stand_in.write_text(
            f"#!/usr/bin/env bash\nprintf '%s\\t' \"$@\" >>{calls}; echo >>{calls}\n"
            f"ends=({ends}); exit ${{ends[$(wc -l <{calls}) - 1]}}\n",
            encoding="utf-8",
        )
        stand_in.chmod(0o755)
        environment = os.environ | {"PYTHON": sys.executable, "LOWRISE": str(stand_in)}
        script = ROOT / "benchmarks" / "study" / "all.sh"
        ended = subprocess.run([script, *words], env=environment, capture_output=True, text=True, timeout=60)
        lines = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
        assert not ended.stderr, ended.stderr
        return ended.returncode, [line.rstrip("\t").split("\t") for line in lines]

    return call


def options(words: list[str]) -> CompareConfig:
    assert words[0] == "compare"
    return parse(CompareConfig, words[1:], "lowrise compare")


def test_every_method_at_three_budgets(asked) -> None:
    status, calls = asked("/tmp/all")
    assert status == 0
    for words, budget in zip(calls, BUDGETS, strict=True):
        found = options(words)
        assert [Path(recipe).name for recipe in found.recipes] == [f"{name}-tiny.toml" for name in METHODS]
        assert found.budget == ("tokens=163840", budget)
        assert (found.out, found.seeds, found.correction) == ("/tmp/all", 3, "holm")


def test_every_method_keeps_to_the_tightest(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes at inference, where the width stays and LoRA has its frozen weights besides."""
    found = options(asked("/tmp/all")[1][1])
    monkeypatch.chdir(ROOT)
    plan = build_plan(found, load, lambda config: plan_run(config, 1024))
    assert plan.size is not None
    for recipe in plan.recipes:
        assert recipe.steps == 160
        assert recipe.sized is not None
        assert 0.9 * plan.size.amount < recipe.sized.used <= plan.size.amount, recipe.label


def test_a_length_and_flags_of_ones_own(asked) -> None:
    _, calls = asked("out", "8k", "--seeds", "1")
    for words in calls:
        found = options(words)
        assert (found.budget[0], found.seeds, found.correction) == ("tokens=8k", 1, "none")


def test_a_failed_table_does_not_keep_the_others_back_and_a_stop_does(asked) -> None:
    status, calls = asked("out", statuses=(1, 0, 0))
    assert (status, len(calls)) == (1, 3)
    status, calls = asked("out", statuses=(0, 130, 0))
    assert (status, len(calls)) == (130, 2)
