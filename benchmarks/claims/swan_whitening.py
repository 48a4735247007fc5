"""SWAN's whitening, with the constants on which its re-implementations agree."""

from __future__ import annotations

import torch
from claim import Claim, Measured, Values, Verdict, run

from lowrise.linalg.polar import polar_svd
from lowrise.linalg.whitening import standardize, whiten

CLAIM = Claim(
    group="Optimizer state",
    title="SWAN's ten Newton-Schulz steps whiten the gradient: all singular values become one.",
    source="Ma et al., arXiv 2412.13148: O = (N N^T)^(-1/2) N by Newton-Schulz; beta 0.8 and ten steps as "
    "three of four re-implementations have them (no authors' code is public).",
    hypothesis="The singular values of O are 1 for Gaussian gradients, whatever the shape.",
    gate="Float64. Holds if all lie in 0.95 to 1.05 at every shape, fails if at one they do not. Beside: "
    "beta 0.5 with 40 steps, and the cosine to the exact polar factor.",
    known="Derived: with beta 0.8 the map has no stable fixed point, and the values wander up to 1.6.",
    scope="the constants of re-implementations; not what the step is worth in loss (see the row of losses)",
    result="They spread from {least} to {largest}, whatever the shape; the cosine to the exact polar "
    "factor is {cosine} at least. With beta 0.5 and 40 steps they are 1 to {converging_off:.0e}. That is "
    "no word against the method, which does well in the losses below, at that size: its step is just not "
    "the one of its formula.",
)

LOW, HIGH = 0.95, 1.05
SHAPES = ((64, 64), (64, 172), (128, 352), (256, 688))
WAYS = {"published": {}, "converging": {"beta": 0.5, "steps": 40}}


def measure(quick: bool) -> Measured:
    rows, values = [], {"least": 9.0, "largest": 0.0, "converging_off": 0.0, "cosine": 1.0}
    for shape in SHAPES[: 2 if quick else None]:
        g = torch.Generator().manual_seed(0)
        N = standardize(torch.randn(shape, generator=g, dtype=torch.float64))
        cells = []
        for way, options in WAYS.items():
            O = whiten(N, **options)  # noqa: E741 - the letter of the paper
            sizes = torch.linalg.svdvals(O)
            # Standardized square gradients have a direction of zero, which stays zero.
            kept = sizes[sizes > 1e-6]
            near = float((O * polar_svd(N)).sum() / (torch.linalg.matrix_norm(O) * kept.numel() ** 0.5))
            cells += [f"{float(kept.min()):.2f} to {float(kept.max()):.2f}", f"{near:.3f}"]
            if way == "published":
                values["least"] = min(values["least"], float(kept.min()))
                values["largest"] = max(values["largest"], float(kept.max()))
                values["cosine"] = min(values["cosine"], near)
            else:
                off = float((kept - 1).abs().max())
                values["converging_off"] = max(values["converging_off"], off)
        rows.append((f"{shape[0]} x {shape[1]}", *cells))
    columns = ("gradient", "beta 0.8, 10 steps", "cosine to polar", "beta 0.5, 40 steps", "cosine to polar")
    return Measured(columns, rows, {name: float(f"{value:.3g}") for name, value in values.items()})


def verdict(values: Values) -> Verdict:
    return "holds" if values["least"] >= LOW and values["largest"] <= HIGH else "fails"


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
