"""Start-up: processor time of whole processes of the command, as ratios to one that imports torch.

    python benchmarks/startup.py [--rounds 9]

All cases in turn, so that what else the machine does meets them alike; medians of user and system time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

import torch
from common import publish

COMMANDS = {
    "--help": 0,
    "train --help": 0,
    "train --method galore --help": 0,
    "plan --help": 0,
    "data prepare --help": 0,
    "methods": 0,
    "methods muon": 0,
    "train --optimizer.lrr 1": 2,
    "train missing.toml": 2,
}
"""Words behind `lowrise` -> its exit code."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    cases = {
        "import torch": ([sys.executable, "-c", "import torch"], 0),
        "import lowrise": ([sys.executable, "-c", "import lowrise"], 0),
        "import lowrise.layers, optim, model": (
            [sys.executable, "-c", "import lowrise.layers, lowrise.optim; from lowrise import Llama"],
            0,
        ),
    }
    for words, code in COMMANDS.items():
        cases[f"lowrise {words}"] = ([sys.executable, "-m", "lowrise", *words.split()], code)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, (command, code) in cases.items():
            seconds[name].append(processor_seconds(command, code))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        [name, f"{median:.3f}", f"{median / medians['import torch']:.3f}"] for name, median in medians.items()
    ]
    columns = ["process", "processor seconds", "of import torch"]
    title = f"Start-up, whole processes, medians of {options.rounds}"
    publish("startup_cpu", title, columns, rows, {"seconds": seconds}, torch.device("cpu"))


def processor_seconds(command: list[str], code: int) -> float:
    """User and system time of a process that ends with this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr.decode()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
