"""Symmetric products by blocks beside whole ones, on a CPU: S S and X^T X of several sizes.

Processor time, medians of rounds in which both forms run in turn; one thread. "by blocks" is
`linalg/symmetric.py`, whatever the size and dtype say that it would do.

    python benchmarks/symmetric.py [--rounds 15] [--output NAME]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from common import publish, show
from torch import Tensor

from lowrise.linalg import symmetric

BATCH_ELEMENTS = 1 << 18


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", default="", help="name under results/; none: print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, seconds = [], {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for k in (64, 128, 192, 256, 512, 1024):
            for rows_of_X in (k, 4 * k):
                name = f"{str(dtype).removeprefix('torch.')}, k = {k}, m = {rows_of_X}"
                seconds[name] = in_turn(stack_of(k, rows_of_X, dtype), options.rounds)
                whole, *others = (statistics.median(times) for times in seconds[name].values())
                rows.append((name, f"{1e3 * whole:.3f}", *(f"{other / whole:.2f}" for other in others)))
    columns = ("X^T X, X (m, k)", "whole, ms", "2 rows of blocks", "4 rows of blocks")
    title = f"symmetric products by blocks, of the time of the whole product, medians of {options.rounds}"
    show(title, columns, rows)
    if options.output:
        publish(
            options.output, title, columns, rows,
            {"options": vars(options), "seconds": seconds}, torch.device("cpu"),
        )  # fmt: skip


def stack_of(k: int, m: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(max(1, BATCH_ELEMENTS // (k * k)), m, k, generator=generator)
    return (X / m**0.5).to(dtype)


def in_turn(X: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of the whole product and of both forms by blocks."""
    seconds: dict[str, list[float]] = {"1": [], "2": [], "4": []}
    for round_ in range(rounds + 2):  # the first two warm up
        for parts, own in seconds.items():
            with patch.object(symmetric, "rows_of_blocks", lambda A, parts=parts: int(parts)):
                taken = processor_seconds(lambda: symmetric.symmetric_products([(X.mT, X)]))
            if round_ >= 2:
                own.append(taken)
    return seconds


def processor_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
