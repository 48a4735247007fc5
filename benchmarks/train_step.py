"""Forward, backward and optimizer time of Spectron, tuned low-rank AdamW, dense AdamW and dense Muon on one
preset.

All are measured in turn within each round, so that a slow minute of the machine hits every row; the table
shows medians over the rounds and ratios of them. Low-rank rows share one model, so they share its forward
and backward times.

    python benchmarks/train_step.py [--preset 60m] [--tokens 16384] [--rounds 5] [--device auto]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import publish, timed

from lowrise.config import RunConfig, load
from lowrise.model import next_token_loss
from lowrise.optim import Optimizer
from lowrise.runs.build import build_optimizer, model_from
from lowrise.runs.environment import autocast_for, choose_device
from lowrise.runs.plan import plan_of

RANKS = {"60m": 128, "130m": 256, "350m": 256, "1b": 512}
DENSE = {"adamw": {"method": "adamw"}, "muon": {"method": "muon"}}
LOW_RANK = {
    "lowrank AdamW": {"method": "lowrank"},
    "spectron published": {"method": "spectron"},
    "spectron certified": {"method": "spectron", "optimizer.variant": "certified"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m", choices=RANKS)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens per update")
    parser.add_argument("--micro", type=int, default=4096, help="tokens a forward pass")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps timed a round")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")

    families = {
        "dense": (config_of(options, DENSE["adamw"]), DENSE),
        "low-rank": (
            config_of(options, LOW_RANK["lowrank AdamW"] | {"layer.rank": RANKS[options.preset]}),
            LOW_RANK,
        ),
    }
    times: dict[str, list[float]] = {}
    flops: dict[str, int] = {}
    parts = {}
    for family, (config, methods) in families.items():
        model = model_from(config, 32_000, device)
        optimizers: dict[str, Optimizer] = {}
        for name, values in methods.items():
            rank = {} if family == "dense" else {"layer.rank": RANKS[options.preset]}
            optimizers[name] = build_optimizer(config_of(options, {**values, **rank}), model)
        flops[family] = plan_of(config, model, optimizers[next(iter(methods))]).flops_per_token
        parts[family] = (config, model, optimizers)
    tokens = torch.randint(32_000, (options.micro // options.seq_len, options.seq_len + 1), device=device)

    for number in range(options.rounds + 1):  # the first round warms up
        for family, (config, model, optimizers) in parts.items():
            forward, backward = forward_backward(
                config, model, tokens, options.tokens // options.micro, device
            )
            steps = {
                name: [timed(o.step, device) for _ in range(options.steps)] for name, o in optimizers.items()
            }
            model.zero_grad()
            if number:
                times.setdefault(f"{family} forward", []).append(forward)
                times.setdefault(f"{family} backward", []).append(backward)
                for name, seconds in steps.items():
                    times.setdefault(f"{name} step", []).extend(seconds)

    median = {name: statistics.median(values) for name, values in times.items()}
    report(options, families, median, times, flops, device)


def config_of(options: argparse.Namespace, values: dict[str, object]) -> RunConfig:
    # Learning rates of zero: weights stay, so every step does the same work on the same numbers.
    return load(None, {"model.preset": options.preset, "optimizer.lr": 0.0, "other.lr": 0.0, **values})


def forward_backward(
    config: RunConfig, model: torch.nn.Module, tokens: torch.Tensor, passes: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of all forward and of all backward passes of one update."""
    forward = backward = 0.0
    for _ in range(passes):
        losses = []

        def compute(losses: list[torch.Tensor] = losses) -> None:
            with autocast_for(config, device):
                losses.append(next_token_loss(model, tokens))

        forward += timed(compute, device)
        backward += timed(losses[0].backward, device)
    return forward, backward


def report(options, families, median, times, flops, device) -> None:  # type: ignore[no-untyped-def]
    both = {family: median[f"{family} forward"] + median[f"{family} backward"] for family in families}
    promised = flops["dense"] / flops["low-rank"]
    measured = both["dense"] / both["low-rank"]
    rows = []
    for family, (_, methods) in families.items():
        for name in methods:
            step = median[f"{name} step"]
            total = both[family] + step
            rows.append(
                (
                    name,
                    f"{median[f'{family} forward']:.3f}",
                    f"{median[f'{family} backward']:.3f}",
                    f"{1e3 * step:.1f}",
                    f"{100 * step / both[family]:.2f}%",
                    f"{step / median['adamw step']:.2f}",
                    f"{(both['dense'] + median['adamw step']) / total:.2f}",
                )
            )
    columns = (
        "",
        "forward s",
        "backward s",
        "step ms",
        "step / (fwd + bwd)",
        "step / dense AdamW",
        "speed-up of an update",
    )
    title = (
        f"{options.preset}, {options.tokens} tokens per update, {options.rounds} rounds, medians. "
        "Low-rank forward + backward: "
        f"{measured:.2f}x dense, FLOPs promise {promised:.2f}x: {100 * measured / promised:.0f}% of it."
    )
    record = {
        "options": vars(options),
        "median_seconds": median,
        "all_seconds": times,
        "flops_per_token": flops,
        "speed_up_promised": promised,
        "speed_up_measured": measured,
    }
    publish(f"train_step_{options.preset}_{device.type}", title, columns, rows, record, device)


if __name__ == "__main__":
    main()
