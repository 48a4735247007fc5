"""LORO's lazy and exact steps on all factors of one model, beside torch.optim.AdamW on the same factors.

All optimizers step in turn within each round, so that a slow minute of the machine hits every row; the table
shows medians over the rounds, their ratios to torch.optim.AdamW's default, how many times faster than the
published exact step each is, and what a step costs on average with one exact step in K, relative to this
project's AdamW (the step of the `lowrank` method). "published" is the exact step as the authors wrote it
(four QRs, an SVD of 2r x 2r, pair by pair, written after their code). Gradients are fresh normal numbers,
moments are 30 updates old, by when those of such gradients have the size that they keep. Time is wall clock
and, on a CPU, also process time: on a shared machine the latter is the one to compare, with one thread.

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
from torch import Tensor, nn

from lowrise.model import LlamaConfig
from lowrise.optim import LORO, AdamW
from lowrise.runs.environment import choose_device

RANKS = {"60m": 128, "130m": 256, "350m": 256, "1b": 512}
PERIODS = (100, 200, 500)  # K, for what a step costs on average
PUBLISHED, LOWRANK = "published exact", "AdamW of this project"
CYCLE = 30  # updates from one exact step to the next here
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
    adamw: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.AdamW(flat, lr=0.0, **values) for name, values in ADAMW.items()
    }
    adamw[LOWRANK] = AdamW([{"params": flat, "role": "factors"}], lr=0.0)
    for optimizer in loro.values():  # moments as they are in the middle of a run
        for _ in range(CYCLE - 1):
            fresh_gradients(flat)
            optimizer.step()
    authors = Published(pairs, (0.9, 0.999))
    for _ in range(CYCLE - 1):
        fresh_gradients(flat)
        authors.step(exact=False)
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
            for _ in range(CYCLE - 1):  # with lr 0: the weights stay
                fresh_gradients(flat)
                seconds["LORO lazy"] = timed(optimizer.step, device)
        seconds[PUBLISHED] = timed(authors.step, device)
        with torch.no_grad():
            torch._foreach_copy_(flat, start)
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


class Published:
    """The authors' exact step with their Adam, pair by pair, in the operations of their loro_optim.py: LU
    solves on the transposes, an SVD of 2r x 2r, and products with all 2r columns of it before r are kept. In
    the dtype of the factors.
    """

    def __init__(self, pairs: list[tuple[nn.Parameter, nn.Parameter]], betas: tuple[float, float]) -> None:
        self.pairs, self.betas, self.lr, self.eps, self.t = pairs, betas, 0.01, 1e-6, 0
        self.moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for pair in pairs for p in pair}

    @torch.no_grad()
    def step(self, *, exact: bool = True) -> None:
        self.t += 1
        b1, b2 = self.betas
        s = self.lr * (1 - b2**self.t) ** 0.5 / (1 - b1**self.t)
        for A, B in self.pairs:
            D_A, D_B = self.direction(A), self.direction(B)
            if exact:
                for p, new in zip((A, B), published(A, B, D_A, D_B, s), strict=True):
                    p.copy_(new)

    def direction(self, p: nn.Parameter) -> Tensor:
        assert p.grad is not None
        m, v = self.moments[p]
        m.mul_(self.betas[0]).add_(p.grad, alpha=1 - self.betas[0])
        v.mul_(self.betas[1]).addcmul_(p.grad, p.grad, value=1 - self.betas[1])
        return m / (v.sqrt() + self.eps)


def published(A: Tensor, B: Tensor, D_A: Tensor, D_B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    r = A.shape[1]
    U, R_A = torch.linalg.qr(A)
    V, R_B = torch.linalg.qr(B)
    Z_A, Z_B = torch.linalg.solve(R_B.T, D_A.T).T, torch.linalg.solve(R_A.T, D_B.T).T
    K = Z_B.T @ V
    Q_A, K_A = torch.linalg.qr(Z_A - U @ (U.T @ Z_A))
    Q_B, K_B = torch.linalg.qr(Z_B - V @ (V.T @ Z_B))
    top = torch.cat([R_A @ R_B.T - s * K, -s * K_B.T], dim=1)
    P, sigma, Qh = torch.linalg.svd(torch.cat([top, torch.cat([-s * K_A, torch.zeros_like(K)], dim=1)]))
    left, right = torch.cat([U, Q_A], dim=1) @ P, torch.cat([V, Q_B], dim=1) @ Qh.T
    root = sigma[:r].sqrt()
    return left[:, :r] * root, right[:, :r] * root


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
    base, lazy, theirs = (medians[name] for name in ("AdamW default", "LORO lazy", PUBLISHED))
    rows = []
    for name, (wall, process) in sorted(medians.items()):
        exact = "exact" in name
        averages = [(process + (k - 1) * lazy[1]) / (k * medians[LOWRANK][1]) for k in PERIODS]
        rows.append(
            (
                name,
                f"{1e3 * wall:.1f}",
                f"{1e3 * process:.1f}",
                f"{wall / base[0]:.2f}",
                f"{process / base[1]:.2f}",
                f"{theirs[0] / wall:.2f} / {theirs[1] / process:.2f}" if exact else "",
                " / ".join(f"{average:.2f}" for average in averages) if exact else "",
            )
        )
    elements = sum(p.numel() for p in params)
    title = (
        f"{options.preset}: {len(params) // 2} pairs, {elements / 1e6:.2f}M elements, rank "
        f"{RANKS[options.preset]}, float32, {options.threads} thread(s), {options.rounds} rounds, medians"
    )
    columns = (
        "",
        "wall ms",
        "process ms",
        "wall / AdamW",
        "process / AdamW",
        "published / this (wall / process)",
        f"average / this project's AdamW, K = {', '.join(map(str, PERIODS))}",
    )
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
