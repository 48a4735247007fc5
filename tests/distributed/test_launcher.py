"""What torchrun shows of a run that ends early, and what becomes of a run whose torchrun is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port, needs_fsdp, parallel_config
from small_runs import run_training

from lowrise.distributed import World
from lowrise.distributed.launcher import GRACE_SECONDS, LOOK_SECONDS, prefix_of
from lowrise.errors import LowriseError, UsageError

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}


def torchrun(*words: object, ranks: int = 2) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "--", "lowrise", *map(str, words)],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def recipe(text_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launcher")
    config = parallel_config(text_folder, "muon", **{"checkpoint.every": 0})
    run_training(config, folder / "one")  # prepares the corpus too
    (folder / "recipe.toml").write_text(config.to_toml())
    return folder / "recipe.toml"


def wait_for_step(run: Path, step: int) -> None:
    metrics = run / "metrics.jsonl"
    for _ in range(2400):
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached")


def workers_of(launcher: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_of_a_killed_torchrun_save_and_end(recipe, tmp_path):
    run = tmp_path / "run"
    launcher = torchrun("train", recipe, "--run", run, "--train.steps", 100_000)
    wait_for_step(run, 5)
    workers = workers_of(launcher.pid)
    assert len(workers) == 2
    launcher.kill()
    begin = time.monotonic()
    while any(lives(worker) for worker in workers):
        assert time.monotonic() - begin < LOOK_SECONDS + GRACE_SECONDS + 30
        time.sleep(0.2)
    launcher.communicate()
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    (saved,) = (run / "checkpoints").glob("step-*")
    assert int(saved.name[5:]) >= 5


@needs_fsdp
@pytest.mark.slow
def test_a_stopped_run_goes_on_with_other_ranks_or_says_why_not(recipe, tmp_path):
    run = tmp_path / "run"
    words = ["train", recipe, "--run", run, "--train.steps", 400, "--parallel.replicate_below", 65]
    launcher = torchrun(*words, "--parallel.data", "ddp")
    wait_for_step(run, 5)
    launcher.terminate()
    launcher.communicate(timeout=240)
    shown, _ = (refused := torchrun(*words, ranks=3)).communicate(timeout=240)
    assert refused.returncode != 0
    assert shown.count("error: train.global_batch_size = 4 is the batch of an update over all ranks") == 1
    assert "Traceback" not in shown.split("error:")[0]
    assert "tensors  elements" not in shown, "nothing is built before"
    launcher = torchrun(*words, "--parallel.data", "fsdp")
    lines = iter(launcher.stdout)
    step = next(int(m[1]) for line in lines if (m := re.search(r"Continuing from step (\d+)", line)))
    wait_for_step(run, step + 3)
    launcher.terminate()
    launcher.communicate(timeout=240)
    alone = subprocess.run(
        [sys.executable, "-m", "lowrise", *map(str, words)],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert alone.returncode == 0, alone.stderr
    assert "Continuing from step" in alone.stdout


def test_torchrun_s_table_ends_with_our_message(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    launcher = torchrun("train", recipe, "--run", tmp_path / "file")
    shown, _ = launcher.communicate(timeout=240)
    table = shown[shown.index("Root Cause") :]
    assert "is a file; name a folder." in table
    assert "Traceback" not in table


def test_environments_that_name_no_rank_are_messages(monkeypatch):
    for rank, size in (("x", "2"), ("2", "2"), ("-1", "2"), ("0", "")):
        with pytest.raises(UsageError, match=f"RANK = {rank!r}, WORLD_SIZE = {size!r}"):
            World.from_environment({"RANK": rank, "WORLD_SIZE": size})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert prefix_of(LowriseError("")) == "error at rank 1: "
    assert prefix_of(UsageError("")) is None
    monkeypatch.setenv("RANK", "two")
    assert prefix_of(LowriseError("")) == "error: "
