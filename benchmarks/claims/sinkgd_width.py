"""SinkGD's step over the width of a model, with and without a spectral target.

The first update of each rule for the matrices of freshly drawn models, gradients of real text. What is
fitted is the exponent of the width in ||dW||_2 for a rate that stays.
"""

from __future__ import annotations

import math
import statistics

import torch
from claim import Claim, Measured, Values, Verdict, run
from toy import batches, loss_of, model_of

from lowrise.optim import SWAN, AdamW, Muon, SinkGD

CLAIM = Claim(
    group="Optimizer state",
    title="Without a spectral target SinkGD's step grows with the width as Adam's does.",
    source="The dossier's derivation (axolotl#3763 and #3785 refuse to scale both ways at once).",
    hypothesis="At a fixed rate, ||dW||_2 of one step grows with the same power of the width as Adam's; "
    'with `target = "muon"` it does not grow.',
    gate="Float32, widths 64 to 512, first gradients of text, mean exponent over the seven matrices of "
    "both blocks. Holds if SinkGD's and AdamW's exponents differ by at most 0.15, fails at 0.3 or more, "
    "undecided between.",
    known="Derived: an update of RMS 1 has a spectral norm between the first and the half power of the "
    "width. Not measured.",
    scope="the first step, widths 64 to 512",
    result="Exponents of {sinkgd} for SinkGD and {adamw} for AdamW; with the target {sinkgd_muon}, as for "
    "Muon. So without a target its rate has to fall as Adam's does when the width grows, and with `target"
    ' = "muon"` it need not, as far as this norm decides. SWAN\'s {swan} lies between.',
)

NEAR, FAR = 0.15, 0.3
WIDTHS = (64, 128, 256, 512)
RULES = {
    "adamw": ("AdamW", lambda m: AdamW.from_model(m, lr=1e-3)),
    "sinkgd": ("SinkGD", lambda m: SinkGD.from_model(m, lr=1e-3)),
    "swan": ("SWAN", lambda m: SWAN.from_model(m, lr=1e-3)),
    "sinkgd_muon": ('SinkGD, `target = "muon"`', lambda m: SinkGD.from_model(m, lr=1e-3, target="muon")),
    "muon": ('Muon, `adjust_lr = "original"`', lambda m: Muon.from_model(m, lr=1e-3, adjust_lr="original")),
}


def measure(quick: bool) -> Measured:
    widths = WIDTHS[:3] if quick else WIDTHS
    rows, values = [], {}
    for key, (title, make) in RULES.items():
        norms = [norms_of(width, make) for width in widths]  # (widths, matrices)
        slopes = [slope(widths, of_one) for of_one in zip(*norms, strict=True)]
        mean = statistics.fmean(slopes)
        sizes = [f"{statistics.geometric_mean(found) / 1e-3:.2f}" for found in norms]
        spread = f"{min(slopes):.2f} to {max(slopes):.2f}"
        rows.append((title, *sizes, f"{mean:.2f}", spread))
        values[key] = round(mean, 2)
    values["apart"] = round(abs(values["sinkgd"] - values["adamw"]), 2)
    columns = ("rule", *(f"||dW|| / lr, {w}" for w in widths), "exponent", "of single matrices")
    return Measured(columns, rows, values)


def verdict(values: Values) -> Verdict:
    if values["apart"] <= NEAR:
        return "holds"
    return "fails" if values["apart"] >= FAR else "undecided"


def norms_of(width: int, make) -> list[float]:
    """||dW||_2 of the first step, matrix by matrix of the blocks."""
    model = model_of(width)
    optimizer = make(model)
    loss_of(model, next(batches(16, 64))).backward()
    weights = [p for name, p in model.named_parameters() if "layers" in name and p.ndim == 2]
    before = [p.detach().clone() for p in weights]
    optimizer.step()
    return [
        float(torch.linalg.matrix_norm(p.detach() - W, ord=2)) for p, W in zip(weights, before, strict=True)
    ]


def slope(widths: tuple[int, ...], norms: tuple[float, ...]) -> float:
    """The power of the width, by least squares of the logarithms."""
    return statistics.linear_regression(
        [math.log(w) for w in widths], [math.log(norm) for norm in norms]
    ).slope


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
