"""LORO's lazy and exact steps on all factors of one model, beside torch.optim.AdamW on the same factors.

All optimizers step in turn within each round, so that a slow minute of the machine hits every row; the table
shows medians over the rounds, their ratios to AdamW's default, and what a step costs on average with one
exact step in K = 500. "published" is the exact step as the authors wrote it (four QRs, an SVD of 2r x 2r,
pair by pair). Gradients are fresh normal numbers, moments are eight updates old. Time is wall clock and, on a
CPU, also process time: on a shared machine the latter is the one to compare, with one thread.

The authors' optimizer, measured the same way on a shared CPU (process time with one thread, wall with two):
lazy 1.17 to 1.18 times AdamW, exact 78 (60m) and 147 (130m) times with one thread, 163 and 211 with two.

    python benchmarks/loro_exact_step.py [--preset 60m] [--threads 1] [--rounds 3] [--layers N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import publish
from torch import nn

from lowrise.linalg import tangent_step_reference
from lowrise.model import LlamaConfig
from lowrise.optim import LORO
from lowrise.train.environment import choose_device

RANKS = {"60m": 128, "130m": 256, "350m": 256, "1b": 512}
K = 500
CYCLE = 8  # updates from one exact step to the next here
VARIANTS = {
    "LORO exact, svd": {},
    "LORO exact, orthographic": {"retraction": "orthographic"},
    "LORO exact, consistent": {"exact_direction": "consistent"},
}
ADAMW = {"AdamW default": {}, "AdamW foreach": {"foreach": True}, "AdamW fused": {"fused": True}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m", choices=RANKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="exact steps timed of each kind")
    parser.add_argument("--layers", type=int, default=0, help="decoder blocks; 0: those of the preset")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    pairs = factors(options.preset, options.layers, device)
    flat = [p for pair in pairs for p in pair]
    loro = {
        name: LORO(
            [{"params": flat, "role": "factors"}], lr=0.0, exact_every=CYCLE, hidden_size=512, **values
        )
        for name, values in VARIANTS.items()
    }
    adamw = {name: torch.optim.AdamW(flat, lr=0.0, **values) for name, values in ADAMW.items()}
    for optimizer in loro.values():  # moments as they are in the middle of a run
        for _ in range(CYCLE - 1):
            fresh_gradients(flat)
            optimizer.step()
    start = [p.detach().clone() for p in flat]

    times: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.rounds + 1):  # the first round warms up
        fresh_gradients(flat)
        seconds = {name: timed(optimizer.step, device) for name, optimizer in adamw.items()}
        for name, optimizer in loro.items():
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            seconds[name] = timed(optimizer.step, device)
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            with torch.no_grad():
                torch._foreach_copy_(flat, start)  # every exact step starts from the same weights
            for _ in range(CYCLE - 1):
                fresh_gradients(flat)
                seconds["LORO lazy"] = timed(optimizer.step, device)
        seconds["published exact"] = timed(lambda: published(pairs), device)
        if number:
            for name, value in seconds.items():
                times.setdefault(name, []).append(value)
    report(options, flat, times, device)


def factors(preset: str, layers: int, device: torch.device) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Pairs of every matrix of the decoder, Xavier as in LORO's scripts."""
    config, r = LlamaConfig.preset(preset), RANKS[preset]
    d, h = config.hidden_size, config.intermediate_size
    shapes = ([(d, d)] * 4 + [(h, d)] * 2 + [(d, h)]) * (layers or config.num_layers)
    torch.manual_seed(0)
    draw = [[torch.randn(k, r, device=device) * (2 / (k + r)) ** 0.5 for k in shape] for shape in shapes]
    return [(nn.Parameter(A), nn.Parameter(B)) for A, B in draw]


def fresh_gradients(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.randn_like(p)


@torch.no_grad()
def published(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """The authors' algorithm in the dtype of the factors; directions of the size that Adam gives them."""
    for A, B in pairs:
        D_A, D_B = (0.3 * p.grad for p in (A, B))  # type: ignore[operator]
        size = torch.full((1,), 0.01, device=A.device)
        tangent_step_reference(A[None], B[None], D_A[None], D_B[None], size)


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(wall, process) seconds of one call, the device's queue drained before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, process = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - process


def report(
    options: argparse.Namespace,
    params: list[nn.Parameter],
    times: dict[str, list[tuple[float, float]]],
    device: torch.device,
) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*t, strict=True)] for name, t in times.items()
    }
    base, lazy = medians["AdamW default"], medians["LORO lazy"]
    rows = []
    for name, (wall, process) in sorted(medians.items()):
        average = (wall + (K - 1) * lazy[0]) / K if "exact" in name else wall
        rows.append(
            (
                name,
                f"{1e3 * wall:.1f}",
                f"{1e3 * process:.1f}",
                f"{wall / base[0]:.2f}",
                f"{process / base[1]:.2f}",
                f"{average / base[0]:.2f}",
            )
        )
    elements = sum(p.numel() for p in params)
    title = (
        f"{options.preset}: {len(params) // 2} pairs, {elements / 1e6:.2f}M elements, rank "
        f"{RANKS[options.preset]}, float32, {options.threads} thread(s), {options.rounds} rounds, medians"
    )
    columns = ("", "wall ms", "process ms", "wall / AdamW", "process / AdamW", f"average at K = {K} / AdamW")
    record = {
        "options": vars(options),
        "median_seconds": medians,
        "all_seconds": times,
        "elements": elements,
        "authors_exact_over_adamw": {"60m": {"1": 78, "2": 163}, "130m": {"1": 147, "2": 211}},
    }
    name = f"loro_exact_step_{options.preset}_{device.type}_{options.threads}"
    publish(name, title, columns, rows, record, device)


if __name__ == "__main__":
    main()
