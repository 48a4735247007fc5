"""What the allocator's settings of the command do to training on a CPU: tokens/s, page faults, peak memory.

Two worker processes, one with `keep_freed_memory` as in the command and one without it, train
the same model with the same tokens; in every round each makes one update, so that a slow minute of the
machine hits both. Seconds are processor time, user and system. The losses of both are compared to the last
bit.

    python benchmarks/allocator.py [--presets nano tiny] [--rounds 15] [--optimizer spectron] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, publish

import lowrise
from lowrise.allocator import keep_freed_memory
from lowrise.model import Llama, LlamaConfig
from lowrise.optim import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
MODES = ("system", "keep")
SEQUENCES, WARM_UP = 16, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["nano", "tiny"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--optimizer", default="spectron")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    rows, measured = [], {}
    for preset in options.presets:
        updates = measured[preset] = pairs(preset, options)
        tokens = SEQUENCES * options.length
        for mode in MODES:
            taken = statistics.median(u["user"] + u["system"] for u in updates[mode])
            ratio = statistics.median(
                (s["user"] + s["system"]) / (u["user"] + u["system"])
                for s, u in zip(updates["system"], updates[mode], strict=True)
            )
            share = sum(u["system"] for u in updates[mode]) / sum(
                u["user"] + u["system"] for u in updates[mode]
            )
            faults = statistics.median(u["faults"] for u in updates[mode])
            peak = updates[mode][-1]["peak_mib"]
            row = (f"{tokens / taken:,.0f}", f"{ratio:.2f}", f"{faults:,.0f}", f"{100 * share:.0f}%")
            rows.append((preset, mode, *row, f"{peak:,.0f}"))
    columns = ("preset", "allocator", "tokens/s", "ratio", "faults/update", "system time", "peak MiB")
    title = (
        f"Training, {options.optimizer}, {SEQUENCES} x {options.length} tokens, {options.threads} thread(s): "
        f"tokens per processor second, medians of {options.rounds} updates in turn; equal losses"
    )
    record = {"updates": measured, "options": vars(options)}
    publish("allocator_cpu", title, columns, rows, record, torch.device("cpu"))
    lines = [f"{title}.", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (RESULTS / "allocator_cpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs(preset: str, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each update took, the two workers in turn."""
    workers = {mode: start(preset, mode, options) for mode in MODES}
    updates: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for round_ in range(options.rounds + WARM_UP):
        answers = {mode: ask(worker) for mode, worker in workers.items()}
        assert answers["system"]["loss"] == answers["keep"]["loss"], "the allocator changed a loss"
        if round_ >= WARM_UP:
            for mode in MODES:
                updates[mode].append(answers[mode])
    for worker in workers.values():
        worker.communicate()
    return updates


def start(preset: str, mode: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    arguments = ["--worker", mode, "--presets", preset, "--optimizer", options.optimizer]
    arguments += ["--length", str(options.length)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "LOWRISE_ALLOCATOR": mode}
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT / "src")},
    )


def ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("update\n")
    worker.stdin.flush()
    return dict(json.loads(worker.stdout.readline()))


def work(options: argparse.Namespace) -> None:
    """A worker: an update for every line of stdin, what it took as JSON on stdout."""
    keep_freed_memory()
    torch.manual_seed(0)
    config = LlamaConfig.preset(options.presets[0])
    model = lowrise.factorize(Llama(config), rank=0.25)
    optimizer = OPTIMIZERS[options.optimizer].from_model(model, lr=0.01, other_lr=1e-3)
    for _ in sys.stdin:
        tokens = torch.randint(config.vocab_size, (SEQUENCES, options.length + 1))
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        taken, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
        system = after.ru_stime - before.ru_stime
        print(
            json.dumps(
                {
                    "user": taken - system,
                    "system": system,
                    "faults": after.ru_minflt - before.ru_minflt,
                    "peak_mib": after.ru_maxrss / 1024,
                    "loss": loss.item(),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
