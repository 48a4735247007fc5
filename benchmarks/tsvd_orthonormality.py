"""What keeping U and V orthonormal costs: the step of TSVD and its retraction, as shares of an update.

Rows are variants of the optimizer on one model; AdamW on the same SVD layers is the step without
orthonormality. All are measured in turn within each round, so that a slow minute of the machine hits every
row; medians.

    python benchmarks/tsvd_orthonormality.py [--preset 60m] [--rank 128] [--tokens 16384] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import publish, timed
from torch import nn

from lowrise.config import load
from lowrise.layers import SVDLinear
from lowrise.linalg import qf, retract_polar, retract_qr
from lowrise.linalg.precision import full_precision_matmul
from lowrise.model import next_token_loss
from lowrise.optim import Optimizer
from lowrise.runs.build import build_optimizer, model_from
from lowrise.runs.environment import autocast_for, choose_device

ROWS = {
    "AdamW (not orthonormal)": {"optimizer.name": "adamw"},
    "TSVD": {},
    "TSVD, project both": {"optimizer.project": "both"},
    "TSVD, polar": {"optimizer.retraction": "polar"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens per update")
    parser.add_argument("--micro", type=int, default=4096, help="tokens a forward pass")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)

    # A rate far too small to train, and not zero: at zero the retraction would be left out.
    base = {
        "method": "tsvd",
        "model.preset": options.preset,
        "layer.rank": options.rank,
        "layer.energy": 0.0,
        "optimizer.lr": 1e-9,
        "other.lr": 0.0,
    }
    config = load(None, base)
    model = model_from(config, 32_000, device)
    optimizers = {name: build_optimizer(load(None, base | values), model) for name, values in ROWS.items()}
    tokens = torch.randint(32_000, (options.micro // options.seq_len, options.seq_len + 1), device=device)

    def forward_backward() -> None:
        model.zero_grad()
        for _ in range(options.tokens // options.micro):
            with autocast_for(config, device):
                loss = next_token_loss(model, tokens)
            loss.backward()

    seconds: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):  # the first round warms up
        times = {"forward and backward": timed(forward_backward, device)}
        times |= {name: timed(optimizer.step, device) for name, optimizer in optimizers.items()}
        times |= retraction_times(model, device)
        if number:
            for name, value in times.items():
                seconds.setdefault(name, []).append(value)
    report(
        options,
        {name: statistics.median(values) for name, values in seconds.items()},
        optimizers,
        model,
        device,
    )


def retraction_times(model: nn.Module, device: torch.device) -> dict[str, float]:
    """All factors of the model retracted once, stacked by shape, from steps of the size of real ones."""
    stacks: dict[torch.Size, list[torch.Tensor]] = {}
    for layer in model.modules():
        if isinstance(layer, SVDLinear):
            for X in (layer.U.detach(), layer.V.detach()):
                stacks.setdefault(X.shape, []).append(X)
    X = [torch.stack(stack) for stack in stacks.values()]
    Z = [3e-3 * torch.randn_like(x) for x in X]
    ways = {
        "retraction, Cholesky": retract_qr,
        "retraction, Householder": lambda x, z: qf(x + z),
        "retraction, polar": retract_polar,
    }
    with full_precision_matmul(device):
        return {
            name: timed(lambda way=way: [way(x, z) for x, z in zip(X, Z, strict=True)], device)
            for name, way in ways.items()
        }


def report(
    options: argparse.Namespace,
    median: dict[str, float],
    optimizers: dict[str, Optimizer],
    model: nn.Module,
    device: torch.device,
) -> None:
    work = median["forward and backward"]
    update = work + median["TSVD"]
    rows = []
    for name, value in median.items():
        share = value / (work + value) if name in optimizers else value / update
        rows.append((name, f"{1e3 * value:.1f}", "" if value == work else f"{100 * share:.2f}%"))
    worst = max(m.orthonormality_error() for m in model.modules() if isinstance(m, SVDLinear))
    title = (
        f"{options.preset}, rank {options.rank}, {options.tokens} tokens per update, medians of "
        f"{options.rounds} rounds on {device.type}. A step's share is of its own update, a retraction's of "
        f"TSVD's. Orthonormality: {worst:.1e}."
    )
    record = {"options": vars(options), "median_seconds": median, "orthonormality_error": worst}
    publish(
        f"tsvd_orthonormality_{options.preset}_{device.type}",
        title,
        ("", "ms", "share"),
        rows,
        record,
        device,
    )


if __name__ == "__main__":
    main()
