"""What only real processes can show: a SIGKILL in the middle, two that start together, workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowrise.data import open_corpus

ROOT = Path(__file__).resolve().parents[3]

# Small parts, so that a little text has many of them. At block number AT the process kills itself without any
# chance to clean up, or, with PAUSE, says so and waits until the file PAUSE exists.
SCRIPT = """
import importlib, os, signal, sys, time
from lowrise.data import DataConfig, prepare
module = importlib.import_module("lowrise.data.parts")
module.PART_BYTES, module.BLOCK_CHARS = 20_000, 5_000
left = int(os.environ.get("AT", "0"))
def progress(done, total, what):
    global left
    if what.startswith("waiting"):
        print(what, file=sys.stderr, flush=True)
    left -= what == "tokenizing"
    if what == "tokenizing" and left == 0:
        if "PAUSE" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        print("paused", file=sys.stderr, flush=True)
        while not os.path.exists(os.environ["PAUSE"]):
            time.sleep(0.01)
source, cache = sys.argv[1:]
config = DataConfig(source=source, vocab_size=400, valid_fraction=0.2, cache=cache)
print(prepare(config, progress=progress).directory)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    lines = [json.dumps({"text": f"{n} is the number of this document. " * (n % 37)}) for n in range(200)]
    path.write_text("\n".join(lines))
    return path


def start(source: Path, cache: Path, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(cache)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[Path, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return Path(out.strip()), err


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith("part-")}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_in_the_middle_then_resumed(source: Path, tmp_path: Path) -> None:
    whole, _ = finish(start(source, tmp_path / "undisturbed"))
    cache = tmp_path / "killed"
    process = start(source, cache, AT="9")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    directory = cache / "corpora" / whole.name
    assert not (directory / "index.json").exists()
    kept = {path: path.stat().st_ino for path in directory.glob("part-*")}
    assert len(kept) == 2, "blocks of 5,000 in parts of 20,000: the ninth block is in the third part"
    shard = (directory / "train-00001.bin").stat().st_ino

    resumed, _ = finish(start(source, cache))
    assert resumed == directory
    assert (directory / "train-00001.bin").stat().st_ino == shard, "a finished part is not written again"
    assert contents(resumed) == contents(whole)
    open_corpus(resumed).verify()


def test_two_at_the_same_time_both_succeed(source: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = start(source, tmp_path / "cache", AT="3", PAUSE=str(go))
    try:
        assert first.stderr is not None
        assert first.stderr.readline() == "paused\n"
        second = start(source, tmp_path / "cache")
        assert second.stderr is not None
        assert second.stderr.readline() == "waiting for another process\n"
    finally:
        go.touch()
    assert finish(first)[0] == finish(second)[0]
    open_corpus(finish(start(source, tmp_path / "cache"))[0]).verify()


def test_many_that_start_together_all_succeed(source: Path, tmp_path: Path) -> None:
    processes = [start(source, tmp_path / "cache") for _ in range(3)]
    directories = {finish(process)[0] for process in processes}
    assert len(directories) == 1
    open_corpus(directories.pop()).verify()


def test_the_threads_do_not_change_the_tokens(source: Path, tmp_path: Path) -> None:
    one, _ = finish(start(source, tmp_path / "one", RAYON_NUM_THREADS="1"))
    many, _ = finish(start(source, tmp_path / "many", RAYON_NUM_THREADS="4"))
    assert contents(one) == contents(many)
