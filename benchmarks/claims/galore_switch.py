"""GaLore's change of subspace: what the kept moments mean in the new one.

A small model is trained on text; at each renewal of the bases the first moment is read back to the size of
the weight with the old and with the new basis.
"""

from __future__ import annotations

import statistics

import torch
from claim import Claim, Measured, Values, Verdict, run
from matrices import cosine, frobenius
from torch import Tensor
from toy import batches, loss_of, model_of

from lowrise.optim import GaLore
from lowrise.optim.rules.projection import back

CLAIM = Claim(
    group="Optimizer state",
    title="GaLore's first moment, kept as it is, means the same when the subspace changes.",
    source="Zhao et al., arXiv 2403.03507, Algorithm 2, and the released code at 2cc66f8, which keep them.",
    hypothesis="The kept first moment, read in the new basis, points where it pointed in the old one.",
    gate="Float32, width 64, rank 16, a renewal every 20 of 120 steps, over all matrices and renewals. "
    "Holds if the median cosine between both readings is at least 0.9, fails at 0.5 or below, undecided "
    "between. Beside: how much of the old moment lies in the new subspace, which a change of basis would "
    "keep.",
    known="Moments of another basis are named as a fault by later papers; no number was known.",
    scope="the direction of the first moment, in a small model at its beginning; not what it costs in loss",
    result="The median cosine is {svd_kept} over {svd_n} renewals, between both limits: much of the "
    "direction is lost, but not most of it. {svd_inside%:.0f} of the old moment lies inside of the new "
    "subspace, so a change of basis would keep nearly all. Bases that follow the one before keep "
    "{warm_kept}. Signs are aligned here; the released code does not align them, which was not measured.",
    decides="Losses of the same runs with moments carried into the new basis, which no option here does: "
    "tiny, 3 seeds.",
)

HIGH, LOW = 0.9, 0.5
WIDTH, RANK, GAP, STEPS = 64, 16, 20, 120


def measure(quick: bool) -> Measured:
    rows, values = [], {}
    for kind, title in (("svd", "as in GaLore"), ("warm", "followed from the basis before (ours)")):
        kept, inside = switches(kind, 60 if quick else STEPS)
        median, share = statistics.median(kept), statistics.median(inside)
        quartiles = statistics.quantiles(kept, n=4)
        shown = f"{quartiles[0]:.2f} to {quartiles[2]:.2f}"
        rows.append((title, str(len(kept)), f"{median:.2f}", shown, f"{share:.2f}"))
        values |= {
            f"{kind}_kept": round(median, 2),
            f"{kind}_inside": round(share, 2),
            f"{kind}_n": len(kept),
        }
    columns = ("bases", "renewals", "median cosine, old to new reading", "quartiles", "part inside the new")
    return Measured(columns, rows, values)


def verdict(values: Values) -> Verdict:
    if values["svd_kept"] >= HIGH:
        return "holds"
    return "fails" if values["svd_kept"] <= LOW else "undecided"


def switches(projection: str, steps: int) -> tuple[list[float], list[float]]:
    """For every matrix and renewal but the first: the cosine of both readings, and ||P' P'^T X|| / ||X|| of
    the old reading X."""
    model = model_of(WIDTH)
    optimizer = GaLore.from_model(
        model, lr=4e-3, other_lr=3e-3, rank=RANK, update_proj_gap=GAP, projection=projection
    )
    matrices = [p for g in optimizer.param_groups if g["role"] == "matrix" for p in g["params"]]
    kept, inside = [], []
    for number, batch in zip(range(steps), batches(), strict=False):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        renews = number > 0 and number % GAP == 0
        old = [snapshot(optimizer, p) for p in matrices] if renews else []
        optimizer.step()
        for (M, bases), p in zip(old, matrices if renews else [], strict=True):
            new = snapshot(optimizer, p)[1]
            X, Y = reading(M, bases), reading(M, new)
            kept.append(cosine(X, Y))
            (side, P), *_ = new.items()
            inside.append(frobenius(P.mT @ X if side == "left" else X @ P) / frobenius(X))
    return kept, inside


def snapshot(optimizer: GaLore, p: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The first moment and the basis by its side, as they are now."""
    state = optimizer.state[p]
    return state["exp_avg"].clone(), {s: state[s].clone() for s in ("left", "right") if s in state}


def reading(M: Tensor, bases: dict[str, Tensor]) -> Tensor:
    """M of the subspace as an m x n matrix."""
    return torch.matmul(*back(M, bases))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
