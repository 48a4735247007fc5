"""`lowrise sweep` and `lowrise compare` as a user types them: real runs, wrong words, a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import overrides

from lowrise.cli import main
from lowrise.config import load

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def lowrise(*words: object) -> list[str]:
    return [sys.executable, "-m", "lowrise", *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(lowrise(*words), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def recipe_in(folder: Path, text_folder: Path, method: str) -> Path:
    path = folder / f"{method}.toml"
    path.write_text(load(None, overrides(text_folder, method)).to_toml())
    return path


def test_a_sweep_s_best_recipe_trains_as_it_did(text_folder: Path, tmp_path: Path) -> None:
    recipe, out = recipe_in(tmp_path, text_folder, "spectron"), tmp_path / "out"
    done = run("sweep", recipe, "--vary", "other.lr=1e-5,1e-2", "--vary", "layer.rank=4", "--out", out)
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("2 trials")[1].split("•")[0]
    assert max(map(len, table.splitlines())) <= 80
    result = json.loads((out / "sweep.json").read_text())
    best = result["trials"][result["best"] - 1]
    assert best["settings"] == {"other.lr": 0.01, "layer.rank": 4}
    again = run("train", out / "best.toml", "--run", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["val_loss"] == best["value"], "the same recipe and seed, the same bits"


def test_a_killed_comparison_goes_on(text_folder: Path, tmp_path: Path) -> None:
    """SIGKILL of the command itself: its workers finish alone and hold the directory meanwhile."""
    recipes = [recipe_in(tmp_path, text_folder, method) for method in ("adamw", "spectron")]
    out = tmp_path / "out"
    words = ["compare", *recipes, "--budget", "tokens=640", "bytes=800kB", "--out", out, "--workers", 2]
    words += ["--seeds", 1, "--lr-factors", "1"]
    process = subprocess.Popen(lowrise(*words), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("runs/*/stderr.log"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(*words)
    if done.returncode == 1:
        assert "or a worker that it left behind, still runs in" in done.stderr.replace("\n", " ")
    while done.returncode == 1 and time.monotonic() < deadline:
        time.sleep(0.5)
        done = run(*words)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "compare.json").read_text())
    assert [row["completed"] for row in result["rows"]] == [1, 1]
    assert result["budget"] == "640 tokens, at most 781 KiB of optimizer state"
    for row in result["rows"]:
        assert 0 < row["costs"]["state_bytes_measured"] <= 800_000, "what was planned is what was there"
    assert "undecided, because adamw has 1 seed(s), fewer than 3" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["sweep", "r.toml", "--vary", "optimizer.learning_rate=1,2", "--out", "x"],
            "nearest is 'optimizer.lr'",
        ),
        (["sweep", "r.toml", "--vary", "optimizer.lr", "--out", "x"], "no key and values around an '='"),
        (
            ["sweep", "none.toml", "--vary", "optimizer.lr=1,2", "--out", "x"],
            "There is no recipe at none.toml",
        ),
        (["sweep", "r.toml", "--varry", "optimizer.lr=1", "--out", "x"], "the nearest is --vary"),
        (["sweep", "r.toml", "--vary", "optimizer.lr=1,2", "--out", "r.toml"], "is a file; name a folder"),
        (["tune", "r.toml"], "the nearest is 'sweep'"),
        (["compare", "r.toml", "--budget", "minutes=3", "--out", "x"], "has no known unit"),
        (
            ["compare", "r.toml", "--budget", "tokens=1k", "--seeds", "1000000000", "--out", "x"],
            "3,000,000,000 runs, and at most 10,000 are planned together",
        ),
        (["compare", "r.toml", "--budget", "tokens=1k", "--first-seed", "-1", "--out", "x"], "-1 cannot be"),
        (["compare", "r.toml", "--budget", "tokens=1e300", "--out", "x"], "updates, and a run at most"),
        (
            ["scaling", "run", "r.toml", "--budgets", "1e15,2e15", "--seeds", "1000000000", "--out", "x"],
            "10,000,000,000 runs, and at most 10,000 are planned together",
        ),
        (
            ["sweep", "r.toml", "--vary", "optimizer.lr=1,2", "--seeds", "9" * 50, "--out", "x"],
            "have 64 bits",
        ),
        (["compare", "r.toml", "--budget", "bytes=10", "--out", "x"], "does not fit in at most 10 B"),
        (["compare", "r.toml", "--budget", "tokens=1k", "flops=1e9", "--out", "x"], "two budgets of length"),
        (
            ["compare", "r.toml", "--budget", "tokens=1k", "--warmup-factors", "0,1", "--out", "x"],
            "is not a list of positive numbers",
        ),
    ],
)
def test_wrong_words_get_a_sentence(
    words: list[str],
    told: str,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe_in(tmp_path, text_folder, "spectron").rename(tmp_path / "r.toml")
    assert main(words) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists(), "nothing is begun"
