"""Writes methods/gauge.md: `python docs/make_gauge.py`, ten seconds.

Every optimizer of factors is run twice, from A, B and from A M, B M^-T, which are the same W = A B^T; nothing
else is transformed. The table says how far the two trajectories of W part. `tests/contracts/test_gauge.py`
holds the methods that promise to stay together to it, and the committed table to what the script would write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrise.optim import OPTIMIZERS

PAGE = Path(__file__).resolve().parent / "methods" / "gauge.md"
NOTE = "<!-- Written by docs/make_gauge.py. -->"

STEPS = 50
SHAPE, RANK = (24, 16), 5
CONDITION = 100.0
EXACT = 1e-9
"""Distances below it are rounding, and the table says so instead of printing them."""


@dataclass(frozen=True)
class Rule:
    """One row: an optimizer with options."""

    title: str
    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    promise: float | None = None
    """Most by which W may part for any gauge; None: nothing is promised."""


RULES = (
    Rule("LoRA-Muon", "loramuon", promise=EXACT),
    Rule("LoRA-Muon, exact msign", "loramuon", {"msign": "svd"}, EXACT),
    Rule("LoRA-Muon, eigenvectors", "loramuon", {"root": "eigh", "msign": "polar8"}, EXACT),
    Rule("LoRA-Muon, Nesterov, decay", "loramuon", {"nesterov": True, "weight_decay": 0.1}, EXACT),
    Rule("LoRA-Muon, rebalanced", "loramuon", {"rebalance_every": 3}, EXACT),
    Rule("LoRA-Muon, tangent", "loramuon", {"direction": "tangent", "msign": "svd"}, EXACT),
    Rule("LoRA-Muon, iterated root", "loramuon", {"root": "iterated"}, 1e-5),
    Rule("LoRA-Muon, published root", "loramuon", {"root": "ns7", "msign": "polar8"}),
    Rule("LoRA-Muon, whole step bounded", "loramuon", {"bound": "whole"}),
    Rule("LoRA-Muon, decay of the product", "loramuon", {"decay": "product", "weight_decay": 0.1}),
    Rule(
        "LORO, exact steps, consistent",
        "loro",
        {"exact_every": 1, "exact_direction": "consistent", "eps": 0.0},
        EXACT,
    ),
    Rule("LORO, the same with eps 1e-6", "loro", {"exact_every": 1, "exact_direction": "consistent"}),
    Rule("LORO, exact steps, authors'", "loro", {"exact_every": 1}),
    Rule(
        "LORO, every fifth step exact, consistent",
        "loro",
        {"exact_every": 5, "exact_direction": "consistent"},
    ),
    Rule("LORO, lazy steps", "loro", {"exact_every": 0}),
    Rule("Spectron, published", "spectron"),
    Rule("Spectron, certified", "spectron", {"variant": "certified"}),
    Rule("Spectron, rebalanced at every step", "spectron", {"rebalance_every": 1}),
    Rule("Muon on factors", "muon"),
    Rule("NorMuon on factors", "normuon"),
    Rule("Dion2 on factors", "dion2"),
    Rule("AdamW", "adamw"),
    Rule("Stable-SPAM", "stablespam"),
    Rule("ReLoRA's AdamW", "relora"),
)
# Else 0.02: steps of W of like size.
LR = {"loro": 0.004, "adamw": 0.004, "relora": 0.004, "muon": 0.01, "normuon": 0.01, "stablespam": 0.004}


def gauges(rank: int = RANK) -> dict[str, Tensor]:
    """Name -> M (r, r) in float64: a rotation, one number, and an ill-conditioned one."""
    g = torch.Generator().manual_seed(11)
    U, V = (torch.linalg.qr(torch.randn(rank, rank, generator=g, dtype=torch.float64)).Q for _ in range(2))
    middle = torch.logspace(-1.0, 1.0, rank, dtype=torch.float64)  # condition `CONDITION`
    return {
        "rotation": U,
        "A 4, B / 4": 4.0 * torch.eye(rank, dtype=torch.float64),
        "ill-conditioned": (U * middle) @ V,
    }


def trajectory(rule: Rule, gauge: Tensor | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """W after each of `STEPS` steps, (steps, m, n), from the gauge M: A M, B M^-T.

    Gradients are those of (1/2) ||W - T||^2 with noise, the same in every gauge: dense ones (m x n) of the W
    that the run has, taken to the factors by the chain rule.
    """
    g = torch.Generator().manual_seed(5)
    m, n = SHAPE
    A, B, goal = (
        torch.randn(k, g_k, generator=g, dtype=torch.float64) for k, g_k in ((m, RANK), (n, RANK), (m, n))
    )
    A, B = A / m**0.5, B / n**0.5
    if gauge is not None:
        A, B = A @ gauge, torch.linalg.solve(gauge, B.mT).mT
    pair = [nn.Parameter(X.to(dtype)) for X in (A, B)]
    options = {"lr": LR.get(rule.optimizer, 0.02), **rule.options}
    optimizer = OPTIMIZERS[rule.optimizer]([{"params": pair, "role": "factors"}], **options)
    seen = []
    for _ in range(STEPS):
        A, B = (p.detach().double() for p in pair)
        G = A @ B.mT - goal / (m + n) ** 0.5 + 0.1 * torch.randn(m, n, generator=g, dtype=torch.float64)
        pair[0].grad, pair[1].grad = (G @ B).to(dtype), (G.mT @ A).to(dtype)
        optimizer.step()
        seen.append(pair[0].detach().double() @ pair[1].detach().double().mT)
    return torch.stack(seen)


def parting(rule: Rule, gauge: Tensor, *, dtype: torch.dtype = torch.float64) -> float:
    """The largest ||W - W'||_F over the steps, relative to ||W||_F."""
    one, other = trajectory(rule, dtype=dtype), trajectory(rule, gauge, dtype=dtype)
    distance = torch.linalg.matrix_norm(one - other) / torch.linalg.matrix_norm(one)
    return float(distance.max())


def told(distance: float) -> str:
    """A cell: two digits, or that it is rounding."""
    return f"< {EXACT:.0e}" if distance < EXACT else f"{distance:.1e}"


def table() -> list[list[str]]:
    """Title, cells by gauge, promise."""
    kinds = gauges()
    return [
        [
            rule.title,
            *(told(parting(rule, gauge)) for gauge in kinds.values()),
            "-" if rule.promise is None else f"{rule.promise:.0e}",
        ]
        for rule in RULES
    ]


def page(rows_of_table: list[list[str]] | None = None) -> str:
    """The whole page, around a table that is at hand or made here."""
    head = ["optimizer", *gauges(), "promised"]
    rows = [head, ["---"] * len(head), *(rows_of_table or table())]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    m, n = SHAPE
    return f"""{NOTE}

# The gauge of a factored weight

`W = A B^T` is the same for `A M, B M^-T` with any invertible M. A layer does not notice; most optimizers do:
their steps depend on how W happens to be split, so the same weight, data and learning rate give another
model. The split comes from the initialization (spectral, xavier, LoRA's zero), from a fold or a conversion,
and drifts during training.

Below, each optimizer takes {STEPS} steps from A, B and from A M, B M^-T ({m} x {n}, rank {RANK}, float64; a
quadratic loss with noise; moments start at zero), and nothing else is transformed. A number is the largest
`||W - W'||_F /
||W||_F` on the way; `< {EXACT:.0e}` is rounding. M is a rotation, the number 4, or ill-conditioned: singular
values from 0.1 to 10.

{lines}

- **Promised** is what `tests/contracts/test_gauge.py` holds the method to, for each of the three.
- LoRA-Muon moves W, whatever the split. What breaks that: the shift of 1e-5 in its published inverse root; a
  bound of the whole step, whose second-order part `dA dB^T` depends on the norms of the factors; decay of the
  product's norm.
- LORO's exact step is free of the split with `exact_direction = "consistent"`, `eps = 0`, and moments that
  are dropped with each step; Adam's entry-by-entry moments, its `eps` and lazy steps are not.
- Spectron, and Muon on each factor, do not see a rotation: orthogonalized momenta turn with it. They see
lengths.
- Rebalancing at every step brings both runs to the same split after the first step, and leaves what that one
did.
- Clipping gradients of the factors by a global norm breaks the invariance too, as it weighs steps by norms of
  G B and G^T A. So the recipes of `loramuon` switch it off.

Made by `python docs/make_gauge.py`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
