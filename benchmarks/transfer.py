"""Whether learning rates transfer over width and rank: the best rate on a grid of factor 2, with and without
`[transfer]`.

Real models on real text, all trained alike but for the rate of the matrices: width 32 to 256 with a rank of a
quarter of it, and rank 8 to 64 at width 128. The base of the multipliers is width 64 with rank 16. What makes
the best rate visible: little vocabulary, one block and a thousand updates, so that the matrices matter; the
rate of all other parameters tuned at the base first, for every method; the mean of the held-out losses after
80, 85, 90, 95 and 100% of the updates. A grid begins with three points around the method's own rate and grows
until the best one is not at its end and the loss at its high end has risen by 0.03. Every finished run is
written at once, so that the script may be stopped and started again; it does what is missing, in the order of
`cells`, until the time is over, and draws the figure of what there is.

    python benchmarks/transfer.py [--text FILE --valid FILE] [--minutes 60] [--only spectron]
    python benchmarks/transfer.py --draw

Writes results/transfer_long_cpu.json and docs/images/transfer.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from transfer_figure import EDGE, draw, summary

from lowrise.config import load
from lowrise.data import Corpus, DataConfig, prepare
from lowrise.distributed import World
from lowrise.inference.evaluate import evaluate_split
from lowrise.runs.environment import describe
from lowrise.train.step import TrainStep

FILE = RESULTS / "transfer_long_cpu.json"
WIDTHS, RANKS = (32, 64, 128, 256), (8, 16, 32, 64)
BASE_WIDTH, BASE_RANK, WIDTH_OF_RANKS = 64, 16, 128
VOCABULARY, HEAD, SEQUENCES, LENGTH = 320, 16, 8, 64
# Middle of a grid at the base.
START = {"spectron": 0.02, "loramuon": 0.02, "lowrank": 2e-3, "muon": 4e-3, "adamw": 1e-3}
OTHER_START = 4e-3
INIT_STD = 0.02
FACTORED = ("spectron", "loramuon", "lowrank")
METHODS = (*FACTORED, "muon", "adamw")
LOWEST, HIGHEST = -4, 6
EVALUATED = (0.8, 0.85, 0.9, 0.95, 1.0)  # shares of the updates after which the held-out loss is taken
EVALUATION_TOKENS = 16_384


@dataclass(frozen=True)
class Cell:
    """One size of one method, with or without multipliers, at one seed: a grid of rates."""

    method: str
    axis: str
    width: int
    rank: int
    transfer: bool
    seed: int = 0


def cells(methods: tuple[str, ...], seeds: int) -> Iterator[Cell]:
    """In the order of worth: the base, then the smallest and the largest size, with multipliers and without,
    before those between; factored methods first."""
    for seed in range(seeds):
        for factored in (True, False):
            chosen = [m for m in methods if (m in FACTORED) == factored]
            ends = ((BASE_WIDTH, *WIDTHS[::3]), RANKS[::3])
            for (widths, ranks), transfer in product((ends, (WIDTHS, RANKS)), (True, False)):
                for method in chosen:
                    for width in widths:
                        yield Cell(method, "width", width, width // 4 if factored else 0, transfer, seed)
                    for rank in ranks if factored else ():
                        yield Cell(method, "rank", WIDTH_OF_RANKS, rank, transfer, seed)


def settings(cell: Cell, lr: float, other_lr: float, steps: int, init_std: float) -> dict[str, Any]:
    """The run, as keys of a recipe."""
    heads = cell.width // HEAD
    values: dict[str, Any] = {
        "method": cell.method,
        "seed": cell.seed,
        "model.preset": "nano",
        "model.hidden_size": cell.width,
        "model.intermediate_size": 2 * cell.width,
        "model.num_heads": heads,
        "model.num_layers": 1,
        "model.init_std": init_std,
        "optimizer.lr": lr,
        "other.lr": other_lr,
        "train.steps": steps,
        "train.global_batch_size": SEQUENCES,
        "train.seq_len": LENGTH,
        "train.device": "cpu",
        "train.threads": 1,
        "schedule.warmup": 0.1,
    }
    if cell.rank:
        values["layer.rank"] = cell.rank
    if cell.transfer:
        values["transfer.base"] = BASE_WIDTH
        if cell.rank:
            values["transfer.rank"] = BASE_RANK
    return values


def loss_of(
    cell: Cell, lr: float, other_lr: float, steps: int, corpus: Corpus, init_std: float = INIT_STD
) -> float:
    """Mean of the last held-out losses; infinite where training is not finite."""
    config = load(None, settings(cell, lr, other_lr, steps, init_std))
    step = TrainStep(config, corpus, World(), notice=lambda text: None, say=lambda text: None)
    evaluated = {round(share * steps) for share in EVALUATED}
    losses: list[float] = []
    for number in range(1, steps + 1):
        if not math.isfinite(step().loss):
            return math.inf
        if number in evaluated:
            with torch.no_grad():
                losses.append(evaluate_split(step.model, corpus, config, tokens=EVALUATION_TOKENS).loss)
    return sum(losses) / len(losses)


def inner_exponent(found: dict[int, float]) -> int | None:
    """The next power of 2 to try until the best one has worse ones on both sides."""
    for exponent in (0, 1, -1):
        if exponent not in found:
            return exponent
    best, low, high = min(found, key=found.__getitem__), min(found), max(found)
    if best == high and high < HIGHEST:
        return high + 1
    return low - 1 if best == low and low > LOWEST else None


def exponents(found: dict[int, float]) -> int | None:
    """As `inner_exponent`, and further until the losses at the high end show the rise."""
    exponent = inner_exponent(found)
    high = max(found, default=0)
    if exponent is None and found[high] < min(found.values()) + EDGE and high < HIGHEST:
        return high + 1
    return exponent


def key_of(cell: Cell, exponent: int) -> str:
    base = cell.width == BASE_WIDTH and cell.rank in (0, BASE_RANK)  # its multipliers are 1: run once
    kind = "transfer" if cell.transfer or base else "standard"
    return f"{cell.method} width={cell.width} rank={cell.rank} {kind} seed={cell.seed} 2^{exponent}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="*", default=[], help="training text; none: the built-in corpus")
    parser.add_argument("--valid", nargs="*", default=[], help="held-out text")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--init-std", type=float, default=INIT_STD, help="of the first weights at the base")
    parser.add_argument("--minutes", type=float, default=60.0, help="of processor time")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--draw", action="store_true", help="the figure and the table of what there is")
    options = parser.parse_args()
    record = json.loads(options.file.read_text()) if options.file.exists() else {"runs": {}, "tuning": {}}
    if not options.draw:
        train_missing(options, record)
    if options.file == FILE:
        draw(record)
    print(summary(record))


class OutOfTime(Exception):
    """The time of `--minutes` is over."""


def train_missing(options: argparse.Namespace, record: dict[str, Any]) -> None:
    text = {"source": tuple(options.text), "valid": tuple(options.valid)} if options.text else {}
    corpus = prepare(DataConfig(vocab_size=VOCABULARY, **text))
    if record.get("steps", options.steps) != options.steps:
        raise SystemExit(f"{options.file} has runs of {record['steps']} steps: give another --file.")
    init_std = record.get("init_std", INIT_STD)  # the first runs did not tell
    if record["runs"] and init_std != options.init_std:
        raise SystemExit(f"{options.file} has runs of init_std {init_std}: give another --file.")
    record |= {
        "text": [Path(file).name for file in (*options.text, *options.valid)] or ["built-in"],
        "corpus": corpus.fingerprint,
        "steps": options.steps,
        "init_std": options.init_std,
        "tokens_per_run": options.steps * SEQUENCES * LENGTH,
        "start": START,
        "other_start": OTHER_START,
        "base": {"width": BASE_WIDTH, "rank": BASE_RANK},
        "environment": describe(torch.device("cpu")),
    }
    end = time.process_time() + 60 * options.minutes

    def trained(table: str, key: str, cell: Cell, lr: float, other_lr: float) -> float:
        runs = record[table]
        if key not in runs:
            if time.process_time() > end:
                raise OutOfTime
            loss = loss_of(cell, lr, other_lr, options.steps, corpus, options.init_std)
            runs[key] = loss if math.isfinite(loss) else None
            options.file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(f"{key}: {loss:.4f}", flush=True)
        return math.inf if runs[key] is None else float(runs[key])

    def other_rate(method: str) -> float:
        """The rate of all other parameters, tuned at the base with the method's own rate."""
        cell = Cell(method, "width", BASE_WIDTH, BASE_RANK if method in FACTORED else 0, True)
        found: dict[int, float] = {}
        while (exponent := inner_exponent(found)) is not None:
            other_lr = OTHER_START * 2.0**exponent
            found[exponent] = trained("tuning", f"{method} other 2^{exponent}", cell, START[method], other_lr)
        return float(OTHER_START * 2.0 ** min(found, key=found.__getitem__))

    try:
        for cell in cells(tuple(options.only), options.seeds):
            other_lr = other_rate(cell.method)
            found: dict[int, float] = {}
            while (exponent := exponents(found)) is not None:
                lr = START[cell.method] * 2.0**exponent
                found[exponent] = trained("runs", key_of(cell, exponent), cell, lr, other_lr)
    except OutOfTime:
        print("The time is over: start again for what is missing.")


if __name__ == "__main__":
    main()
