"""Orthonormality over a long training run: TSVD on real text, U and V measured in float64 as it goes.

The built-in corpus, float32, adaptive ranks with their three events and the recipe's other settings; a model
of width 64 (or another preset). The table has the largest entry of |X^T X - I| over all U and V, at the
start and within each tenth of the run; the bar is 1e-6.

    python benchmarks/tsvd_long_run.py [--preset nano] [--steps 10000] [--every 50]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import publish

from lowrise.config import load
from lowrise.console import Console
from lowrise.data import prepare
from lowrise.layers import SVDLinear
from lowrise.train import RunDirectory
from lowrise.train.display import Display
from lowrise.train.loop import Trainer

BAR = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=50, help="updates between two measurements")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    config = load(
        None,
        {
            "method": "tsvd",
            "model.preset": options.preset,
            "layer.rank": 0.5,
            "layer.rank_multiple": 2,
            "layer.min_rank": 8,
            "train.steps": options.steps,
            "train.global_batch_size": options.sequences,
            "train.seq_len": options.seq_len,
            "train.threads": options.threads,
            "log.tensorboard": False,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        display = Display(Console(quiet=True), options.steps)
        trainer = Trainer(config, prepare(config.data), RunDirectory(Path(folder)), display)
        measured = [measure(trainer)]
        for number in range(1, options.steps + 1):
            update = trainer.update()
            if number % options.every == 0 or number == options.steps:
                measured.append({**measure(trainer), "loss": update.loss})
    report(options, measured, trainer)


def measure(trainer: Trainer) -> dict[str, float]:
    layers = [m for m in trainer.model.modules() if isinstance(m, SVDLinear)]
    return {
        "step": trainer.progress.step,
        "error": max(layer.orthonormality_error() for layer in layers),
        "mean_rank": sum(layer.rank for layer in layers) / len(layers),
    }


def report(options: argparse.Namespace, measured: list[dict[str, float]], trainer: Trainer) -> None:
    rows = [("start", f"{measured[0]['error']:.1e}", f"{measured[0]['mean_rank']:.1f}", "")]
    for tenth in range(10):
        low, high = tenth * options.steps / 10, (tenth + 1) * options.steps / 10
        part = [entry for entry in measured if low < entry["step"] <= high]
        rows.append(
            (
                f"{low:.0f} to {high:.0f}",
                f"{max(entry['error'] for entry in part):.1e}",
                f"{part[-1]['mean_rank']:.1f}",
                f"{part[-1]['loss']:.3f}",
            )
        )
    worst = max(entry["error"] for entry in measured)
    tokens = options.sequences * options.seq_len
    title = (
        f"{options.preset}, {options.steps} updates of {tokens} tokens, float32: "
        f"largest error {worst:.1e}, at the end {measured[-1]['error']:.1e}; bar {BAR:.0e}"
    )
    record = {"options": vars(options), "worst": worst, "bar": BAR, "measured": measured}
    publish(
        f"tsvd_long_run_{options.preset}_{trainer.device.type}",
        title,
        ("updates", "max |X^T X - I|", "mean rank at the end", "loss"),
        rows,
        record,
        trainer.device,
    )


if __name__ == "__main__":
    main()
