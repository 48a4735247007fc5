"""Weights of fixed norm, on a product of factors: what is fixed, and what is not bounded."""

from __future__ import annotations

from itertools import pairwise

import torch
from claim import Claim, Measured, Values, Verdict, run
from matrices import spectral
from torch import Tensor, nn

from lowrise.optim import Muon, Spectron

CLAIM = Claim(
    group="Steps and their bounds",
    title="Norm-fixed weights (hyperball) carry over to a product of factors.",
    source="Wen et al., arXiv 2606.16899, for dense matrices; the form on A B^T is ours.",
    hypothesis="||A B^T||_F stays what it was; gradients times 1000 give the same W; factors whose product"
    " is c times larger give c times the W, as for a dense matrix.",
    gate="Float64, 50 steps with Spectron's directions (exact polar factors), rate 0.014. Holds if all "
    "three hold to 1e-9 relative, fails if one does not. Beside: the largest ||dW||_2 over lr ||W||_2, "
    "which nothing bounds.",
    known="The dossier's oracle has the first two to 1e-15 for its own form; not with these gradients, "
    "which depend on W.",
    scope="the arithmetic of the step: any size",
    result="All three hold to rounding: {pair_norm:.0e}, {pair_gradient:.0e} and {pair_size:.0e}. The "
    "largest ||dW||_2 is {pair_turn} of lr ||W||_2 here, which is an observation and no bound.",
)

LR, LIMIT, STEPS = 0.014, 1e-9, 50
SHAPE, RANK = (40, 28), 6


def measure(quick: bool) -> Measured:
    steps = 10 if quick else STEPS
    rows, values = [], {}
    for key, title in (("pair", "A B^T, Spectron's directions"), ("dense", "dense W, Muon's")):
        plain, scaled, large = (trajectory(key, steps, **o) for o in ({}, {"gradient": 1e3}, {"size": 3.0}))
        norms = torch.linalg.matrix_norm(plain)
        found = {
            "norm": float((norms / norms[0] - 1).abs().max()),
            "gradient": apart(scaled, plain),
            "size": apart(large / 3.0, plain),
            "turn": max(spectral(b - a) / spectral(a) for a, b in pairwise(plain)) / LR,
        }
        exact = [f"{found[k]:.0e}" for k in ("norm", "gradient", "size")]
        rows.append((title, *exact, f"{found['turn']:.2f}"))
        values |= {f"{key}_{name}": float(f"{value:.3g}") for name, value in found.items()}
    columns = ("weights", "norm moves by", "gradients x 1000", "W_0 x 3", "largest ||dW||_2 / (lr ||W||_2)")
    return Measured(columns, rows, values)


def verdict(values: Values) -> Verdict:
    worst = max(values[f"pair_{name}"] for name in ("norm", "gradient", "size"))
    return "holds" if worst <= LIMIT else "fails"


def trajectory(key: str, steps: int, *, gradient: float = 1.0, size: float = 1.0) -> Tensor:
    """W before the first and after each step, (steps + 1, m, n); gradients are those of a function of the
    direction of W, with noise, times `gradient`."""
    g = torch.Generator().manual_seed(3)
    A, B, goal = (
        torch.randn(s, generator=g, dtype=torch.float64) for s in ((SHAPE[0], RANK), (SHAPE[1], RANK), SHAPE)
    )
    if key == "pair":
        weights = [nn.Parameter(X * size**0.5) for X in (A, B)]
        group = {"params": weights, "role": "factors", "hyperball": True}
        optimizer = Spectron([group], lr=LR, ortho="svd")
    else:
        weights = [nn.Parameter(A @ B.mT * size)]
        group = {"params": weights, "role": "matrix", "hyperball": True}
        optimizer = Muon([group], lr=LR, ns_dtype="float64", ns_eps=1e-30)
    seen = [product(weights)]
    for _ in range(steps):
        W = seen[-1]
        G = W / torch.linalg.matrix_norm(W) - goal / torch.linalg.matrix_norm(goal)
        G = gradient * (G + 0.1 * torch.randn(SHAPE, generator=g, dtype=torch.float64) / SHAPE[0])
        if key == "pair":
            weights[0].grad, weights[1].grad = G @ weights[1].detach(), G.mT @ weights[0].detach()
        else:
            weights[0].grad = G
        optimizer.step()
        seen.append(product(weights))
    return torch.stack(seen)


def product(weights: list[nn.Parameter]) -> Tensor:
    if len(weights) == 1:
        return weights[0].detach().clone()
    return weights[0].detach() @ weights[1].detach().mT


def apart(one: Tensor, other: Tensor) -> float:
    """The largest relative distance of two trajectories."""
    return float((torch.linalg.matrix_norm(one - other) / torch.linalg.matrix_norm(other)).max())


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
