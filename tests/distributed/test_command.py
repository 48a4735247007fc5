"""`torchrun ... -m lowrise train`, as a user starts it: signals, failures, and sentences."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import free_port, needs_fsdp, parallel_config
from small_runs import final_tensors, run_training

FAULTY = Path(__file__).with_name("faulty.py")
ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """`--` keeps torchrun from taking lowrise's --run for one of its own flags."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def lowrise(*arguments: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return torchrun("-m", "--", "lowrise", *arguments, ranks=ranks)


def lowrise_with(fault: str, rank: int, step: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return torchrun("--", FAULTY, fault, rank, step, *arguments)


@pytest.fixture(scope="module")
def folder(text_folder, tmp_path_factory) -> Path:
    """A recipe, its run on one rank (`one`) and on two (`two`, with the words of torchrun in `two.txt`)."""
    folder = tmp_path_factory.mktemp("command")
    config = parallel_config(text_folder, "spectron", **{"sample.tokens": 4, "log.tensorboard": True})
    run_training(config, folder / "one")  # prepares the corpus too
    (folder / "recipe.toml").write_text(config.to_toml())
    done = lowrise("train", folder / "recipe.toml", "--run", folder / "two")
    assert done.returncode == 0, done.stderr
    (folder / "two.txt").write_text(done.stdout)
    return folder


def test_a_run_of_two_ranks_speaks_and_writes_once(folder):
    said = (folder / "two.txt").read_text()
    assert said.count("validation loss") == 2  # the evaluation and the last line
    assert said.count("Report:") == 1
    for name in ("config.toml", "environment.json", "summary.json", "report.html", "sample.txt"):
        assert (folder / "two" / name).exists(), name
    assert len(list((folder / "two" / "tensorboard").iterdir())) == 1
    lines = [json.loads(line) for line in (folder / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 9), 8]
    one, two = (json.loads((folder / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(("fault", "last"), [("sigterm", 3), ("late sigterm", 4)])
def test_sigterm_to_one_rank_saves_and_stops_all(fault, last, folder, tmp_path):
    """One that comes while the ranks tell each other is heard after the next update, by all at once."""
    run = tmp_path / "stopped"
    arguments = ["train", folder / "recipe.toml", "--run", run]
    stopped = lowrise_with(fault, 1, 3, *arguments)
    assert stopped.returncode != 0  # torchrun's own code for a worker that failed is 1
    assert f"SIGTERM: stopped after step {last} of 8, saved." in stopped.stderr
    assert "exitcode  : 143" in stopped.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    assert (run / "checkpoints" / f"step-{last:08d}").is_dir()
    continued = lowrise(*arguments)
    assert continued.returncode == 0, continued.stderr
    assert f"Continuing from step {last}" in continued.stdout
    assert final_tensors(run, 8) == final_tensors(folder / "two", 8)


@pytest.mark.parametrize(
    ("fault", "rank", "data"),
    [
        ("raise", 1, "ddp"),
        pytest.param("raise", 0, "ddp", marks=pytest.mark.slow),
        pytest.param("sigkill", 1, "ddp", marks=pytest.mark.slow),
        pytest.param("sigkill", 1, "fsdp", marks=needs_fsdp),
    ],
)
def test_a_rank_that_fails_ends_the_run_within_a_minute(fault, rank, data, folder, tmp_path):
    started = time.monotonic()
    shared = ["--parallel.data", data, "--parallel.replicate_below", 65]
    # A rank that dies while a checkpoint is written beside training takes it along: whole or absent.
    shared += ["--checkpoint.asynchronous", "false"]
    failed = lowrise_with(fault, rank, 5, "train", folder / "recipe.toml", "--run", tmp_path / "run", *shared)
    assert time.monotonic() - started < 60 + 60  # a minute to start two processes on a busy machine
    assert failed.returncode != 0
    table = failed.stderr[failed.stderr.index("Root Cause") :]
    assert f"rank      : {rank} " in table
    assert ("ZeroDivisionError: the fault that was asked for" if fault == "raise" else "Signal 9") in table
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
    if rank != 0:
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["status"] == "failed"
        assert "has lost the other ranks" in summary["error"]


def test_what_cannot_be_gets_one_sentence(folder):
    done = lowrise(
        "train",
        folder / "recipe.toml",
        "--train.global_batch_size",
        3,
        "--train.micro_batch_size",
        0,
    )
    assert done.returncode != 0
    assert (
        done.stderr.count("error: train.global_batch_size = 3 is the batch of an update over all ranks") == 1
    )
    assert "exitcode  : 2" in done.stderr


@pytest.mark.slow
def test_a_failure_of_rank_0_alone_ends_all(folder):
    """The folder holds another recipe: rank 0 looks, the other ranks end with the same code, silently."""
    done = lowrise("train", folder / "recipe.toml", "--run", folder / "one", "--seed", 5)
    assert done.stderr.count("holds checkpoints of another recipe") >= 1
    assert "lost" not in done.stderr
    # The other rank ends with 2 as well, unless torchrun saw the first one's end before and sent it SIGTERM.
    ended = done.stderr.count("exitcode  : 2") + done.stderr.count("exitcode  : -15")
    assert done.stderr.count("exitcode  : 2") >= 1
    assert ended == 2
