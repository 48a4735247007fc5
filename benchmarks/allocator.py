"""What the allocator's settings of the command do to training on a CPU: tokens/s, page faults, peak memory.

Runs `lowrise train` with LOWRISE_ALLOCATOR=system and =keep in turn, each for a few and for more updates;
what the further updates took, start-up and end subtracted, is a round's measurement. Seconds are processor
time of the process, user and system. The losses of both are compared to the last bit.

    python benchmarks/allocator.py [--presets nano tiny] [--rounds 3] [--method spectron] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, publish

ROOT = Path(__file__).resolve().parents[1]
UPDATES = {"nano": (5, 65), "tiny": (2, 10)}
MODES = ("system", "keep")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=list(UPDATES), choices=UPDATES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", default="spectron")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    for preset in options.presets:
        measured[preset] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            ended = {mode: difference(preset, mode, options) for mode in MODES}
            assert ended["system"].pop("losses") == ended["keep"].pop("losses"), "the losses differ"
            for mode in MODES:
                measured[preset][mode].append(ended[mode])
    rows = []
    for preset, modes in measured.items():
        for mode, rounds in modes.items():
            row = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            ratio = statistics.median(
                a["tokens_per_second"] / b["tokens_per_second"]
                for a, b in zip(rounds, modes["system"], strict=True)
            )
            rows.append(
                (
                    preset,
                    mode,
                    f"{row['tokens_per_second']:,.0f}",
                    f"{ratio:.2f}",
                    f"{row['faults']:,.0f}",
                    f"{100 * row['system_share']:.0f}%",
                    f"{row['peak_mib']:,.0f}",
                )
            )
    columns = ("preset", "allocator", "tokens/s", "ratio", "faults/update", "system time", "peak MiB")
    title = (
        f"lowrise train, {options.method}, {options.threads} thread(s): tokens per processor second, medians "
        f"of {options.rounds} rounds in turn; losses equal to the last bit"
    )
    publish(
        f"allocator_{'-'.join(options.presets)}_cpu",
        title,
        columns,
        rows,
        {"rounds": measured, "options": vars(options)},
        torch.device("cpu"),
    )
    lines = [f"{title}.", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (RESULTS / f"allocator_{'-'.join(options.presets)}_cpu.md").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )


def difference(preset: str, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Of the updates by which the longer run is longer."""
    few, more = (run(preset, mode, updates, options) for updates in UPDATES[preset])
    updates = UPDATES[preset][1] - UPDATES[preset][0]
    user, system = more["user"] - few["user"], more["system"] - few["system"]
    return {
        "tokens_per_second": updates * more["tokens_per_update"] / (user + system),
        "system_share": system / (user + system),
        "faults": (more["faults"] - few["faults"]) / updates,
        "peak_mib": more["peak_mib"],
        "losses": more["losses"],
    }


def run(preset: str, mode: str, updates: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of the command in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--run", f"{folder}/run", "--method", options.method, "--model.preset", preset]
        arguments += ["--train.steps", str(updates), "--train.device", "cpu", "--eval.every", "1000000"]
        arguments += ["--log.every", "1"]
        threads = str(options.threads)
        environment = {**os.environ, "LOWRISE_ALLOCATOR": mode, "OMP_NUM_THREADS": threads}
        process = subprocess.Popen(
            [sys.executable, "-m", "lowrise", "train", *arguments],
            env=environment | {"PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"the run ended with {process.returncode}")
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return {
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "faults": usage.ru_minflt,
        "peak_mib": usage.ru_maxrss / 1024,
        "losses": [line["loss"] for line in lines if "loss" in line],
        "tokens_per_update": summary["tokens"] / updates,
    }


if __name__ == "__main__":
    main()
