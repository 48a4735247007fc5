"""The best rate over weight decay: of Muon, and of Muon whose weights have a fixed norm."""

from __future__ import annotations

import statistics

import torch
from claim import Claim, Measured, Values, Verdict, run
from toy import batches, loss_of, model_of

from lowrise.optim import Muon

CLAIM = Claim(
    group="Losses",
    title="With a fixed norm of the weights (hyperball) the best rate no longer depends on weight decay.",
    source="Wen et al., arXiv 2606.16899, who leave decay out.",
    hypothesis="A decay W <- (1 - lr wd) W before the step leaves the best rate of norm-fixed Muon where "
    "it is, and moves that of plain Muon.",
    gate="Byte model of width 64, 150 updates at a constant rate, matrices alone decayed, grid of factor "
    "2; loss of the last 30 batches, the mean over 2 seeds. Decays: 0, and such that lr wd = 0.02 at each "
    "rate. Holds if the best rate of the norm-fixed form is the same with and without decay and their "
    "losses there differ by at most 0.01, and plain Muon's best rate or its loss there changes by more "
    "than that; fails if the norm-fixed best rate moves by two steps of the grid or more; undecided "
    "otherwise, or at an edge of a grid.",
    known="Derived: with a fixed norm a decay only makes the rate lr / (1 - lr wd), here 2% larger. For "
    "Muon a decay sets the norm at which weights settle, and so the angle of a step; not measured.",
    scope="a byte model of width 64, 150 updates: decay has little time to act",
    result="Norm-fixed: best at {hyperball_none_rate:g} without and {hyperball_decay_rate:g} with decay, "
    "{hyperball_none_loss} and {hyperball_decay_loss} nats. Plain: best at {plain_none_rate:g} without and "
    "{plain_decay_rate:g} with, {plain_none_loss} and {plain_decay_loss} nats. As claimed so far, but the "
    "last is the end of its grid, so that the gate leaves it open.",
    decides="Plain Muon with decay at rates of 0.16 and 0.32, until the best lies inside.",
)

STEPS, LAST, PRODUCT = 150, 30, 0.02
RATES = {
    "hyperball": (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08),
    "plain": (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08),
}


def measure(quick: bool) -> Measured:
    rows, values = [], {}
    for kind, rates in RATES.items():
        for product in (0.0, PRODUCT):
            means = {}
            for lr in rates[1:4] if quick else rates:
                losses = [
                    trained(kind, lr, product, seed, 40 if quick else STEPS)
                    for seed in range(1 if quick else 2)
                ]
                means[lr] = statistics.fmean(losses)
            best = min(means, key=means.__getitem__)
            key = f"{kind}_{'decay' if product else 'none'}"
            values |= {f"{key}_rate": best, f"{key}_loss": round(means[best], 4)}
            values |= {f"{key}_edge": best in (min(means), max(means))}
            curve = ", ".join(f"{lr:g}: {loss:.3f}" for lr, loss in means.items())
            rows.append((kind, f"{product:g}", f"{best:g}", f"{means[best]:.4f}", curve))
    return Measured(("norm", "lr wd", "best rate", "loss there", "losses by rate"), rows, values)


def verdict(values: Values) -> Verdict:
    if any(values[f"{kind}_{decay}_edge"] for kind in RATES for decay in ("none", "decay")):
        return "undecided"
    moved = {kind: values[f"{kind}_decay_rate"] / values[f"{kind}_none_rate"] for kind in RATES}
    changed = {kind: abs(values[f"{kind}_decay_loss"] - values[f"{kind}_none_loss"]) for kind in RATES}
    if not 0.3 < moved["hyperball"] < 3.0:
        return "fails"
    still = moved["hyperball"] == 1.0 and changed["hyperball"] <= 0.01
    return "holds" if still and (moved["plain"] != 1.0 or changed["plain"] > 0.01) else "undecided"


def trained(kind: str, lr: float, product: float, seed: int, steps: int) -> float:
    """Mean loss of the last batches; of a diverged run, a large number."""
    model = model_of(64, seed=seed)
    optimizer = Muon.from_model(
        model, lr=lr, other_lr=3e-3, adjust_lr="original", hyperball=kind == "hyperball"
    )
    matrices = [p for group in optimizer.param_groups if group["role"] == "matrix" for p in group["params"]]
    losses = []
    for number, batch in zip(range(steps), batches(seed=seed), strict=False):
        loss = loss_of(model, batch)
        loss.backward()
        with torch.no_grad():
            torch._foreach_mul_(matrices, 1.0 - product)
        optimizer.step()
        optimizer.zero_grad()
        if number >= steps - LAST:
            losses.append(min(float(loss.detach()), 99.0))
    return statistics.fmean(losses)


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
