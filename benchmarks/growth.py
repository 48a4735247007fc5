"""Does cost grow linearly? Each quantity at three sizes, the others held: processor time of one thread.

tokens      forward and backward pass of nano over 8, 16 and 32 sequences of 128
layers      the same over 4, 8 and 16 blocks, 8 sequences
matrices    a step of AdamW, Spectron and GaLore over 40, 80 and 160 matrices of 64 x 64 (factors of rank 16)
groups      a step of AdamW over 160 matrices in 4, 40 and 160 groups
documents   a corpus of 2,000, 4,000 and 8,000 documents from its text, its tokenizer trained

"exponent" is the slope of log time over log size by least squares: 1 is linear, less is a fixed part.

    python benchmarks/growth.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import publish
from torch import nn

from lowrise.allocator import keep_freed_memory
from lowrise.config import load
from lowrise.data import prepare
from lowrise.model import LlamaConfig, build_model, next_token_loss
from lowrise.optim import OPTIMIZERS

Case = tuple[str, tuple[int, ...], Callable[[int], Callable[[], object]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes, make in cases(Path(folder)):
            works = [make(size) for size in sizes]
            taken: list[list[float]] = [[] for _ in sizes]
            for number in range(options.rounds + 1):
                for work, kept in zip(works, taken, strict=True):
                    started = time.process_time()
                    work()
                    if number:  # the first one warms up
                        kept.append(time.process_time() - started)
            least = [min(kept) for kept in taken]
            seconds[name] = dict(zip(map(str, sizes), taken, strict=True))
            times = (f"{1e3 * t:.1f}" for t in least)
            growth = f"{least[-1] / least[0]:.2f} of {sizes[-1] / sizes[0]:.0f}"
            rows.append((name, " ".join(map(str, sizes)), *times, growth, f"{slope(sizes, least):.2f}"))
    columns = ("what", "sizes", "first ms", "second ms", "third ms", "third / first", "exponent")
    title = f"Growth of cost with size, one thread, the least of {options.rounds} rounds"
    record = {"seconds": seconds, "options": vars(options)}
    publish("growth_cpu", title, columns, rows, record, torch.device("cpu"))


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(t) for t in seconds]).slope


def cases(folder: Path) -> list[Case]:
    return [
        ("tokens", (1024, 2048, 4096), lambda n: training(layers=2, sequences=n // 128)),
        ("layers", (4, 8, 16), lambda n: training(layers=n, sequences=8)),
        *[(f"matrices, {name}", (40, 80, 160), step_over(name)) for name in ("adamw", "spectron", "galore")],
        ("groups, adamw", (4, 40, 160), lambda n: step("adamw", 160, groups=n)),
        ("documents", (2000, 4000, 8000), lambda n: preparation(folder, n)),
    ]


def training(*, layers: int, sequences: int) -> Callable[[], object]:
    model = build_model(LlamaConfig.preset("nano", vocab_size=1000, num_layers=layers))
    tokens = torch.randint(1000, (sequences, 129))

    def work() -> None:
        next_token_loss(model, tokens).backward()
        model.zero_grad()

    return work


def step_over(name: str) -> Callable[[int], Callable[[], object]]:
    return lambda matrices: step(name, matrices, groups=1)


def step(name: str, matrices: int, *, groups: int) -> Callable[[], object]:
    """Of `matrices` in `groups` of equal size."""
    factored = name == "spectron"
    shapes = [(64, 16), (64, 16)] if factored else [(64, 64)]
    parameters = [[nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(matrices)]
    for p in (p for unit in parameters for p in unit):
        p.grad = torch.randn_like(p)
    size = matrices // groups
    members = [
        {
            "params": [p for unit in parameters[i : i + size] for p in unit],
            "role": "factors" if factored else "matrix",
        }
        for i in range(0, matrices, size)
    ]
    options = {"rank": 16, "update_proj_gap": 10**6} if name == "galore" else {}
    optimizer = OPTIMIZERS[name](members, lr=1e-3, **options)
    return lambda: optimizer.step(grad_norm=1.0)


def preparation(folder: Path, documents: int) -> Callable[[], object]:
    """Each call has a cache of its own, so that nothing is there from before."""
    text = folder / f"{documents}.jsonl"
    line = '{{"text": "document {n}: {n} squared is {m}, and so it goes on with a few more words of text"}}\n'
    text.write_text("".join(line.format(n=n, m=n * n) for n in range(documents)))
    calls = iter(range(10**6))

    def work() -> None:
        settings = {"data.source": [str(text)], "data.vocab_size": 512, "data.workers": 1}
        prepare(load(None, {**settings, "data.cache": str(folder / f"{documents}-{next(calls)}")}).data)

    return work


if __name__ == "__main__":
    main()
