"""What the trainer takes beside a bare loop of the same model, optimizer and batch: processor time.

One thread. An update of the trainer has everything but evaluation and checkpoints: batches from the corpus,
schedule, gradient norm and clipping, decision, counters, the display and a record every ten updates. The bare
loop has forward and backward pass, `clip_grad_norm_`, step, `zero_grad` and a read of the loss. In turn.

    python benchmarks/trainer_overhead.py [--presets nano tiny] [--methods adamw lowrank] [--rounds 60]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import publish

from lowrise.allocator import keep_freed_memory
from lowrise.config import load
from lowrise.console import Console
from lowrise.data import prepare
from lowrise.model import next_token_loss
from lowrise.train import RunDirectory
from lowrise.train.display import Display
from lowrise.train.loop import Trainer

SEQUENCES, LENGTH, VOCABULARY, MANY = 16, 128, 1024, 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["nano", "tiny"])
    parser.add_argument("--methods", nargs="+", default=["adamw", "lowrank"])
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(f"{n} is {n * n} squared and {n % 97} modulo 97\n" for n in range(40_000)))
        for preset in options.presets:
            for method in options.methods:
                own, bare = in_turn(preset, method, text, options.rounds)
                seconds[f"{preset} {method}"] = {"trainer": own, "bare": bare}
                ratio = statistics.median(a / b for a, b in zip(own, bare, strict=True))
                medians = (f"{1e3 * statistics.median(t):.2f}" for t in (own, bare))
                rows.append((preset, method, *medians, f"{ratio:.3f}", f"{min(own) / min(bare):.3f}"))
    title = f"Update of the trainer beside a bare loop, {SEQUENCES} x {LENGTH} tokens, one thread"
    columns = ("preset", "method", "trainer ms", "bare ms", "median ratio", "ratio of minima")
    record = {"seconds": seconds, "options": vars(options)}
    publish("trainer_overhead_cpu", title, columns, rows, record, torch.device("cpu"))


def in_turn(preset: str, method: str, text: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Processor seconds of each update of the trainer and of the bare loop."""
    config = load(
        None,
        {
            "method": method,
            "model.preset": preset,
            "data.source": [str(text)],
            "data.vocab_size": VOCABULARY,
            "data.cache": str(text.parent / "cache"),
            "train.steps": MANY,
            "train.global_batch_size": SEQUENCES,
            "train.seq_len": LENGTH,
            "train.device": "cpu",
            "train.threads": 1,
            "log.every": 10,
            "log.telemetry_every": 0,
            "log.tensorboard": False,
            "checkpoint.every": MANY,
        },
    )
    display = Display(Console(file=io.StringIO(), width=120), config.train.steps)
    run = RunDirectory(text.parent / f"{preset}-{method}")
    run.path.mkdir()
    trainer = Trainer(config, prepare(config.data), run, display)
    model, optimizer = trainer.train_step.model, trainer.optimizer
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1))

    def bare() -> None:
        loss = next_token_loss(model, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(grad_norm=1.0)
        optimizer.zero_grad()
        float(loss.detach())

    taken: tuple[list[float], list[float]] = ([], [])
    works: tuple[Callable[[], object], ...] = (lambda: trainer._advance(None), bare)
    for number in range(rounds + 5):
        for work, kept in zip(works, taken, strict=True):
            started = time.process_time()
            work()
            if number >= 5:  # the first ones warm up
                kept.append(time.process_time() - started)
    return taken


if __name__ == "__main__":
    main()
