"""LoRA-Muon's radius: what the learning rate bounds."""

from __future__ import annotations

import torch
from claim import Claim, Measured, Values, Verdict, run
from matrices import orthonormal, spectral
from torch import nn

from lowrise.optim import LoRAMuon

CLAIM = Claim(
    group="Steps and their bounds",
    title="LoRA-Muon's step moves W = A B^T by at most the learning rate, in the spectral norm.",
    source="Cesista, Crowson, Simal, Biderman, arXiv 2606.12921, derive the radius for the first-order "
    "change; that it is one of W itself is what a reader may take it for.",
    hypothesis="||A' B'^T - A B^T||_2 <= lr for any factors and gradients, with an exact msign.",
    gate="Float64, rate 0.1, no decay, no shape factor, msign by SVD. Holds if the whole change is at most"
    " (1 + 1e-6) lr in every case, fails if one exceeds it. Beside: the first-order part dA B^T + A dB^T,"
    ' and `bound = "whole"`.',
    known="Derived: the first-order part is bounded, dA dB^T is not. No value was measured with this script.",
    scope="any size: one step is enough",
    result="The first-order part stays below the rate ({first_order} at most), the whole change does not: "
    "dA dB^T has no bound, and from factors whose least singular value is 0.01 W moves by {whole:.0f} "
    'times the rate. With `bound = "whole"` it is {bounded} at most. From well-conditioned factors the '
    "whole change stays below the rate too.",
)

LR, LIMIT = 0.1, 1 + 1e-6
SHAPE, RANK = (48, 32), 6
SMALLEST = {"balanced, all 1": 1.0, "least singular value 0.1": 0.1, "0.01": 0.01}


def measure(quick: bool) -> Measured:
    seeds = 3 if quick else 30
    rows, values = [], {"first_order": 0.0, "whole": 0.0, "bounded": 0.0}
    for title, least in SMALLEST.items():
        worst = dict.fromkeys(values, 0.0)
        for seed in range(seeds):
            first, whole = one_step(least, seed, bound="first_order")
            bounded = one_step(least, seed, bound="whole")[1]
            for key, ratio in zip(worst, (first, whole, bounded), strict=True):
                worst[key] = max(worst[key], ratio)
        rows.append((title, *(f"{ratio:.4f}" for ratio in worst.values())))
        values = {key: max(values[key], worst[key]) for key in values}
    shown = {key: round(ratio, 4) for key, ratio in values.items()}
    columns = ("factors", "first-order part / lr", "whole change / lr", 'whole, `bound = "whole"`')
    return Measured(columns, rows, shown | {"excess": values["whole"] - 1})


def verdict(values: Values) -> Verdict:
    return "holds" if values["excess"] <= LIMIT - 1 else "fails"


def one_step(least: float, seed: int, *, bound: str) -> tuple[float, float]:
    """||dA B^T + A dB^T||_2 and ||A' B'^T - A B^T||_2 over lr; singular values of the factors from 1 down to
    `least`."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(1.0, least, RANK, dtype=torch.float64)
    A, B = ((orthonormal(k, RANK, g) * sizes) @ orthonormal(RANK, RANK, g).mT for k in SHAPE)
    pair = [nn.Parameter(X.clone()) for X in (A, B)]
    G = torch.randn(SHAPE, generator=g, dtype=torch.float64)
    pair[0].grad, pair[1].grad = G @ B, G.mT @ A
    group = {"params": pair, "role": "factors"}
    # The proof of the whole bound needs an iteration whose largest singular value is known.
    msign = {"msign": "svd"} if bound == "first_order" else {}
    LoRAMuon([group], lr=LR, momentum=0.0, scale="none", bound=bound, **msign).step()
    dA, dB = pair[0].detach() - A, pair[1].detach() - B
    first = dA @ B.mT + A @ dB.mT
    return spectral(first) / LR, spectral(first + dA @ dB.mT) / LR


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
