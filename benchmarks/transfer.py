"""Whether learning rates transfer over width and rank: the best rate on a grid of factor 2, with and without
`[transfer]`.

Real models on real text, all trained alike but for the rate of the matrices: width 16 to 256 with a rank of a
quarter of it, and rank 8 to 64 at width 128. The base of the multipliers is width 64 with rank 16. A grid
begins with three points around the method's own rate and grows until the best one is not at its end and the
loss at its high end has risen by 0.03: near the best it is flat, and where it rises is the sharper mark.
Every finished run is written at once, so that the script may be stopped and started again; it does what is
missing, in the order of METHODS, until the time is over, and draws the figure of what there is.

    python benchmarks/transfer.py [--text FILE --valid FILE] [--minutes 60] [--only spectron]
    python benchmarks/transfer.py --draw

Writes results/transfer_cpu.json and docs/images/transfer.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
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

FILE = RESULTS / "transfer_cpu.json"
WIDTHS, RANKS = (16, 32, 64, 128, 256), (8, 16, 32, 64)
BASE_WIDTH, BASE_RANK, WIDTH_OF_RANKS = 64, 16, 128
HEAD, SEQUENCES, LENGTH = 16, 8, 64
START = {"spectron": 0.02, "lowrank": 2e-3, "muon": 4e-3, "adamw": 1e-3}  # middle of a grid at the base
FACTORED = ("spectron", "lowrank")
METHODS = ("spectron", "lowrank", "muon", "adamw")
LOWEST, HIGHEST = -2, 5


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
    """In the order of worth: factored first; the smallest and the largest size, with multipliers and without,
    before those between; the largest width, as dear as the rest together, last."""
    for seed in range(seeds):
        for factored in (True, False):
            chosen = [m for m in methods if (m in FACTORED) == factored]
            for widths, ranks in ((WIDTHS[:-1:3], RANKS[::3]), (WIDTHS[:-1], RANKS), (WIDTHS, ())):
                for transfer in (True, False):
                    for method in chosen:
                        for width in widths:
                            rank = width // 4 if factored else 0
                            yield Cell(method, "width", width, rank, transfer, seed)
                    for method in chosen if factored else ():
                        for rank in ranks:
                            yield Cell(method, "rank", WIDTH_OF_RANKS, rank, transfer, seed)


def settings(cell: Cell, lr: float, options: argparse.Namespace) -> dict[str, Any]:
    """The run, as keys of a recipe."""
    heads = cell.width // HEAD
    values: dict[str, Any] = {
        "method": cell.method,
        "seed": cell.seed,
        "model.preset": "nano",
        "model.hidden_size": cell.width,
        "model.intermediate_size": 2 * cell.width,
        "model.num_heads": heads,
        "optimizer.lr": lr,
        "other.lr": options.other_lr,
        "train.steps": options.steps,
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


def loss_of(cell: Cell, lr: float, options: argparse.Namespace, corpus: Corpus) -> float:
    """Held-out loss after training; infinite where it is not finite."""
    config = load(None, settings(cell, lr, options))
    step = TrainStep(config, corpus, World(), notice=lambda text: None, say=lambda text: None)
    for _ in range(options.steps):
        if not math.isfinite(step().loss):
            return math.inf
    with torch.no_grad():
        return evaluate_split(step.model, corpus, config, tokens=32_768).loss


def exponents(cell: Cell, found: dict[int, float]) -> int | None:
    """The next rate to try, as a power of 2 times the start; None where the best is inside the grid and the
    losses at its high end show the rise."""
    for exponent in (0, 1, -1):
        if exponent not in found:
            return exponent
    best, low, high = min(found, key=found.__getitem__), min(found), max(found)
    if found[high] < found[best] + EDGE and high < HIGHEST:
        return high + 1
    return low - 1 if best == low and low > LOWEST else None


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
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--other-lr", type=float, default=4e-3, help="of embedding and head, at the base")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--draw", action="store_true", help="the figure and the table of what there is")
    options = parser.parse_args()
    record = json.loads(options.file.read_text()) if options.file.exists() else {"runs": {}}
    if not options.draw:
        train_missing(options, record)
    draw(record)
    print(summary(record))


def train_missing(options: argparse.Namespace, record: dict[str, Any]) -> None:
    text = {"source": tuple(options.text), "valid": tuple(options.valid)} if options.text else {}
    corpus = prepare(DataConfig(vocab_size=512, **text))
    for key in ("steps", "other_lr"):
        if record.get(key, getattr(options, key)) != getattr(options, key):
            raise SystemExit(f"{options.file} has runs with {key} = {record[key]}: give another --file.")
    record |= {
        "text": [Path(file).name for file in (*options.text, *options.valid)] or ["built-in"],
        "corpus": corpus.fingerprint,
        "steps": options.steps,
        "other_lr": options.other_lr,
        "tokens_per_run": options.steps * SEQUENCES * LENGTH,
        "start": START,
        "base": {"width": BASE_WIDTH, "rank": BASE_RANK},
        "environment": describe(torch.device("cpu")),
    }
    end = time.monotonic() + 60 * options.minutes
    for cell in cells(tuple(options.only), options.seeds):
        found: dict[int, float] = {}
        while (exponent := exponents(cell, found)) is not None:
            key = key_of(cell, exponent)
            if key not in record["runs"]:
                if time.monotonic() > end:
                    return
                loss = loss_of(cell, START[cell.method] * 2.0**exponent, options, corpus)
                record["runs"][key] = loss if math.isfinite(loss) else None
                options.file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(f"{key}: {loss:.4f}", flush=True)
            loss_or_none = record["runs"][key]
            found[exponent] = math.inf if loss_or_none is None else loss_or_none


if __name__ == "__main__":
    main()
