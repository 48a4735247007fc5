"""Adam's second moment in bfloat16, as in programs that cast the whole model."""

from __future__ import annotations

import torch
from claim import Claim, Measured, Values, Verdict, run
from torch import Tensor, nn

from lowrise.optim import AdamW

CLAIM = Claim(
    group="Optimizer state",
    title="Adam's second moment may be kept in bfloat16, as in pure bfloat16 training.",
    source="The released recipes of GaLore, Fira, APOLLO, CoLA and LORO: the model is cast to bfloat16, "
    "and with it Adam's state, beta2 = 0.999, without stochastic rounding.",
    hypothesis="After the gradients have become ten times smaller, the second moment follows as it does in"
    " float32.",
    gate="torch.optim.Adam on bfloat16 weights, 1,000 steps of normal gradients, then 2,000 of a tenth. "
    "Holds if the mean of sqrt(v) is within 5% of the same in float32, fails above 20%, undecided "
    "between. Beside: lowrise's AdamW, which keeps float32 moments for bfloat16 weights.",
    known="The dossier measured 1.29 against 0.24 at other lengths (beta2 v rounds to v).",
    scope="beta2 = 0.999; any size. What it costs in loss is another question",
    result="In bfloat16 sqrt(v) stays at {bfloat16_after} where in float32 it falls to {float32_after}: "
    "too large by {off%:.0f}, so that steps are too short by that factor once gradients have become "
    "small. It is too large before as well ({bfloat16_before} against {float32_before}). lowrise keeps "
    "float32 moments for bfloat16 weights ({lowrise_after}).",
)

NEAR, FAR = 0.05, 0.2


def measure(quick: bool) -> Measured:
    before, after = (100, 400) if quick else (1000, 2000)
    kinds = {
        "float32": lambda W: torch.optim.Adam([W], lr=1e-3),
        "bfloat16": lambda W: torch.optim.Adam([W], lr=1e-3),
        "lowrise": lambda W: AdamW([W], lr=1e-3, betas=(0.9, 0.999)),
    }
    titles = {
        "float32": "torch.optim.Adam, float32",
        "bfloat16": "torch.optim.Adam, bfloat16",
        "lowrise": "lowrise's AdamW, bfloat16 weights",
    }
    rows, values = [], {}
    for kind, make in kinds.items():
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        sizes = roots(make, dtype, before, after)
        rows.append((titles[kind], str(sizes[2]), f"{sizes[0]:.3f}", f"{sizes[1]:.3f}"))
        values |= {f"{kind}_before": round(sizes[0], 3), f"{kind}_after": round(sizes[1], 3)}
    values["off"] = round(values["bfloat16_after"] / values["float32_after"] - 1, 2)
    columns = ("optimizer", "state", "mean of sqrt(v) before", "after the gradients fell")
    return Measured(columns, rows, values)


def verdict(values: Values) -> Verdict:
    if abs(values["off"]) <= NEAR:
        return "holds"
    return "fails" if abs(values["off"]) > FAR else "undecided"


def roots(make, dtype: torch.dtype, before: int, after: int) -> tuple[float, float, str]:
    """The mean of sqrt(v), not corrected for bias, after so many steps and after as many of a tenth."""
    g = torch.Generator().manual_seed(0)
    W = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    optimizer = make(W)
    found: list[float] = []
    v: Tensor = W.detach()
    for count, size in ((before, 1.0), (after, 0.1)):
        for _ in range(count):
            W.grad = (size * torch.randn(W.shape, generator=g)).to(dtype)
            optimizer.step()
        v = optimizer.state[W]["exp_avg_sq"]
        found.append(float(v.float().sqrt().mean()))
    return found[0], found[1], str(v.dtype).removeprefix("torch.")


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
