"""LORO's exact step: is it the Riemannian gradient step that its text derives?

One step from the same factors. The direction of W's change for a short rate is compared with the tangent
projection P(G) of the gradient, which is what an exact step along the Riemannian gradient takes. The
listing of Algorithm 2 (R of the factor in the place of that of the normal part) is put beside.
"""

from __future__ import annotations

import torch
from claim import Claim, Measured, Values, Verdict, run
from matrices import cosine
from torch import Tensor, nn

from lowrise.linalg.fixed_rank import tangent_step
from lowrise.optim import LORO

CLAIM = Claim(
    group="Steps and their bounds",
    title="As released, LORO's exact step moves W along the Riemannian gradient: its projection to the "
    "tangent space.",
    source="Mo, Huang, Pan, ICLR 2025, Algorithms 1 and 2; released code LORO-main at 4da57b6.",
    hypothesis="At the first step, dW of the released exact step (Adam's directions of both factors put in"
    " the place of their gradients) is parallel to -P(G), for any G.",
    gate="Float64, rate 1e-6, 20 gradients. Holds if the least cosine between dW and -P(G) is at least "
    '0.999, fails below. Beside: the same with the raw gradients, our `exact_direction = "consistent"`, '
    "and the listing of Algorithm 2.",
    known="Derived: Adam's division entry by entry makes directions that belong to no one function. The "
    "dossier measured the listing (56% off the projected gradient), not the cosine.",
    scope="any size: one step is enough",
    result="Adam's directions turn the step away from it, to a cosine of {authors} in the worst case; the "
    "two versions of its core block differ by at least {cores} of their norm. From raw gradients the "
    "exact step is the Riemannian one (cosine {raw}), and so is ours with one denominator for the pair "
    "({consistent}). The listing of Algorithm 2 is another step ({listing}), a misprint that the code "
    "does not have. What the direction does to the loss is asked below.",
)

LR, LIMIT = 1e-6, 0.999
SHAPE, RANK = (40, 28), 6
KINDS = {
    "raw": "raw gradients of the factors",
    "authors": "released: Adam's directions",
    "consistent": 'ours, `exact_direction = "consistent"`',
    "listing": "the listing of Algorithm 2, raw gradients",
}


def measure(quick: bool) -> Measured:
    cosines: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cores = []
    for seed in range(3 if quick else 20):
        g = torch.Generator().manual_seed(seed)
        A, B, G = (
            torch.randn(shape, generator=g, dtype=torch.float64)
            for shape in ((SHAPE[0], RANK), (SHAPE[1], RANK), SHAPE)
        )
        wanted = -projected(A, B, G)
        for kind in KINDS:
            cosines[kind].append(cosine(moved(kind, A, B, G), wanted))
        cores.append(disagreement(A, B, (G @ B).sign(), (G.mT @ A).sign()))
    rows = [
        (title, f"{min(cosines[kind]):.4f}", f"{sum(cosines[kind]) / len(cosines[kind]):.4f}")
        for kind, title in KINDS.items()
    ]
    values = {kind: round(min(found), 4) for kind, found in cosines.items()}
    values["cores"] = round(min(cores), 2)
    return Measured(("direction of the step", "least cosine to -P(G)", "mean"), rows, values)


def verdict(values: Values) -> Verdict:
    return "holds" if values["authors"] >= LIMIT else "fails"


def moved(kind: str, A: Tensor, B: Tensor, G: Tensor) -> Tensor:
    """The change of W by one exact step."""
    if kind == "raw":
        step = torch.tensor([LR], dtype=torch.float64)
        A_new, B_new, *_ = tangent_step(A[None], B[None], (G @ B)[None], (G.mT @ A)[None], step)
        return (A_new @ B_new.mT)[0] - A @ B.mT
    if kind == "listing":
        return listed(A, B, G) - A @ B.mT
    pair = [nn.Parameter(X.clone()) for X in (A, B)]
    pair[0].grad, pair[1].grad = G @ B, G.mT @ A
    options = {"exact_every": 1, "exact_direction": kind, "eps": 1e-12}
    LORO([{"params": pair, "role": "factors"}], lr=LR, **options).step()
    return pair[0].detach() @ pair[1].detach().mT - A @ B.mT


def listed(A: Tensor, B: Tensor, G: Tensor) -> Tensor:
    """W after the step of Algorithm 2's listing: the lower left block is -s R_A, not that of the normal part.

    T = [[R_A R_B^T - s K, -s K_B^T], [-s R_A, 0]], W' = [U Q_A] svd_r(T) [V Q_B]^T.
    """
    (U, R_A), (V, R_B) = (torch.linalg.qr(X) for X in (A, B))
    GV, GU = G @ V, G.mT @ U
    Q_A = torch.linalg.qr(GV - U @ (U.mT @ GV)).Q
    Q_B, K_B = torch.linalg.qr(GU - V @ (V.mT @ GU))
    T = torch.zeros(2 * RANK, 2 * RANK, dtype=torch.float64)
    T[:RANK, :RANK] = R_A @ R_B.mT - LR * U.mT @ GV
    T[:RANK, RANK:], T[RANK:, :RANK] = -LR * K_B.mT, -LR * R_A
    P, sigma, Qh = torch.linalg.svd(T)
    core = (P[:, :RANK] * sigma[:RANK]) @ Qh[:RANK]
    return torch.cat([U, Q_A], dim=1) @ core @ torch.cat([V, Q_B], dim=1).mT


def projected(A: Tensor, B: Tensor, G: Tensor) -> Tensor:
    """P(G) = U U^T G + G V V^T - U U^T G V V^T."""
    U, V = (torch.linalg.qr(X).Q for X in (A, B))
    left, right = U @ (U.mT @ G), (G @ V) @ V.mT
    return left + right - (left @ V) @ V.mT


def disagreement(A: Tensor, B: Tensor, D_A: Tensor, D_B: Tensor) -> float:
    """||K_A - K_B|| over the mean of both norms: U^T G V as the direction of A has it, and that of B."""
    (U, R_A), (V, R_B) = (torch.linalg.qr(X) for X in (A, B))
    by_A = U.mT @ torch.linalg.solve_triangular(R_B, D_A, upper=True, left=False)
    by_B = torch.linalg.solve_triangular(R_A, D_B, upper=True, left=False).mT @ V
    size = 0.5 * (torch.linalg.matrix_norm(by_A) + torch.linalg.matrix_norm(by_B))
    return float(torch.linalg.matrix_norm(by_A - by_B) / size)


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
