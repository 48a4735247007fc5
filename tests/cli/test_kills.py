"""Kills at any moment of `lowrise train`, from its start to its report: a stop signal gives one message and
128 + N, and after any of them the same command ends with the same weights.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from nursery import ENVIRONMENT, Nursery
from small_runs import config_for, final_tensors, write_text

STEPS = 24


class Trial:
    """A tiny run with a cache of its own: it trains its tokenizer and prepares its corpus too.

    Most fork from a nursery, since most moments of so short a process would be those of the imports; kills
    within them are tried with fresh processes (`nursery` is none).
    """

    def __init__(self, folder: Path, nursery: Nursery | None) -> None:
        folder.mkdir()
        self.folder, self.nursery = folder, nursery
        write_text(folder / "text.jsonl", 60)
        settings = {
            "data.vocab_size": 270,
            "train.steps": STEPS,
            "checkpoint.every": 5,
            "checkpoint.keep": 2,
            "sample.tokens": 4,
        }
        (folder / "recipe.toml").write_text(config_for(folder, "lowrank", **settings).to_toml())
        self.words = ["train", str(folder / "recipe.toml"), "--run", str(folder / "run")]
        self.errors = folder / "errors.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Begin the command; its process, once that has its handlers."""
        self.errors.write_text("")
        if self.nursery is not None:
            process = self.nursery.start(self.words, self.errors)
        else:
            with self.errors.open("w") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "lowrise", *self.words],
                    env=ENVIRONMENT,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            process = self._process.pid
        while not _catches(process, signal.SIGHUP):
            time.sleep(0.002)
        return process

    def end(self) -> int:
        """Wait for the command; its exit code."""
        if self._process is not None:
            return self._process.wait(timeout=240)
        assert self.nursery is not None
        return self.nursery.end()

    def finish(self) -> None:
        self.start()
        assert self.end() == 0, self.errors.read_text()

    def weights(self) -> dict[str, bytes]:
        return final_tensors(self.folder / "run", STEPS)


def _catches(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal (the last one that a command sets), or has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "f" * 16)
    return bool(int(caught, 16) >> (number - 1) & 1)


def ended_well(number: signal.Signals, code: int, errors: str) -> bool:
    """Killed; or stopped with one message; or not stopped, since the work was done."""
    if number == signal.SIGKILL or code == 0:
        return code in (0, -number)
    said = [line for line in errors.splitlines() if line]
    return code == 128 + number and len(said) == 1 and "same command continues" in said[0]


def scan(kills: int, fresh: int, folder: Path, seed: int) -> Counter[str]:
    """Kill runs at a random moment, at times twice, until `kills` of them were met before their own end; how
    they ended, counted. The first `fresh` are processes of their own."""
    draw = random.Random(seed)
    nursery = Nursery()
    whole = {None: Trial(folder / "whole-fresh", None), nursery: Trial(folder / "whole", nursery)}
    seconds = {}
    for kind, trial in whole.items():
        begin = time.monotonic()
        trial.finish()
        seconds[kind] = time.monotonic() - begin
    ends, met = Counter[str](), 0
    for kill in range(4 * kills):
        if met == kills:
            break
        kind = None if met < fresh else nursery
        trial = Trial(folder / f"kill-{kill}", kind)
        number = draw.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
        begin = time.monotonic()
        process = trial.start()
        time.sleep(draw.uniform(0, seconds[kind]))
        send(process, number)
        if draw.random() < 0.3:
            time.sleep(draw.uniform(0, 1.5))
            send(process, number)
        code, errors = trial.end(), trial.errors.read_text()
        what = f"kill {kill} by {number.name} ended with {code}: {errors}"
        assert "Traceback" not in errors, what
        assert ended_well(number, code, errors), what
        begun = "" if (trial.folder / "run").exists() else " before the run began"
        ends[f"{number.name} -> {code}{begun}"] += 1
        met += code != 0
        if code == 0:  # came too late: the machine has become faster than the drawn moments suppose
            seconds[kind] = min(seconds[kind], time.monotonic() - begin)
        trial.finish()
        assert trial.weights() == whole[kind].weights(), what
        left = [entry.name for entry in (trial.folder / "run").iterdir() if entry.name.endswith(".tmp")]
        assert not left, what
        assert len(list((trial.folder / "run" / "checkpoints").iterdir())) == 2, what
    nursery.close()
    assert met == kills, f"only {met} of {sum(ends.values())} kills met a run"
    return ends


def send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def test_a_few_kills_at_random_moments(tmp_path):
    assert sum(scan(5, 1, tmp_path, seed=1).values()) >= 5


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_kills_at_random_moments(tmp_path, capsys):
    ends = scan(100, 20, tmp_path, seed=int(os.environ.get("LOWRISE_KILL_SEED", "2")))
    with capsys.disabled():
        print("\n", *(f"{count:4d}  {end}\n" for end, count in sorted(ends.items())))
    assert sum(ends.values()) >= 100


def interrupted(words: list[str], number: int, ready: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A Python program that says when it is ready and then gets a signal."""
    process = subprocess.Popen(
        [sys.executable, *words], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    while ready not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


STUCK = """
import lowrise.signals as s, re
s.leave_when_stopped()
print("ready", flush=True)
{work}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "work",
    [
        "while True: pass",
        "while True:\n try:\n  while True: pass\n except BaseException: pass",  # swallows what is raised
        "class D:\n def __del__(self):\n  while True: pass\ndel D\nimport time\ntime.sleep(30)",
    ],
)
def test_one_message_wherever_python_is(work, number, tmp_path):
    done = interrupted(["-c", STUCK.format(work=work)], number, "ready", tmp_path)
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert done.returncode == 128 + number
    assert done.stderr == f"interrupted{name}: the same command continues.\n"


def test_a_library_that_stays_in_its_own_code_is_not_waited_for(tmp_path):
    work = (
        "import ctypes, ctypes.util\nlibc = ctypes.CDLL(ctypes.util.find_library('c'))\n"
        "import signal\nsignal.siginterrupt(signal.SIGINT, False)\nlibc.getchar()"
    )
    words = ["-c", STUCK.format(work=work)]
    process = subprocess.Popen(
        [sys.executable, *words],
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert "ready" in process.stdout.readline()
    time.sleep(1)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - begin < 10
    assert process.stderr.read() == "interrupted: the same command continues.\n"
    process.stdin.close()
