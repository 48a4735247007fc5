"""Fira: GaLore plus the rest of the gradient; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.norms import frobenius, line_norms
from lowrise.optim.engine.projected_adam import (
    Batch,
    ProjectedAdam,
    channel_dim,
    channel_factors,
    limiting_factors,
)
from lowrise.optim.engine.units import Layout, Shape
from lowrise.optim.rules.growth_limiter import GAMMA, Limiter, check_limiter
from lowrise.optim.rules.projection import Projection, ProjType, back


class Fira(ProjectedAdam):
    """Fira: GaLore plus the rest of the gradient, scaled and limited (Chen et al. 2024, arXiv 2410.01623,
    Algorithm 1; the form and defaults of github.com/xichen-fy/Fira).

    Per matrix W (m x n) with gradient G, t = number of this step from 1, basis P on one side (written here
    for "left", P m x r, and its columns j; "right": P n x r, R = G P, rows):

    1. refresh P if it is due: the r leading singular vectors of G, signs aligned with the old ones
    2. R = P^T G                                            (r x n)
    3. M <- b1 M + (1 - b1) R;  V <- b2 V + (1 - b2) R R    (moments are kept when P is refreshed)
    4. N = M / (sqrt(V) + eps)                              (eps on the uncorrected root)
    5. the direction U (m x n):
       a. phi_j = ||N_j|| / (||R_j|| + 1e-8) per column: how much Adam scaled that column of R
       b. S = (G - a P R) diag(phi), what GaLore throws away, scaled by the same factors
       c. S <- S / f, f from the norm-growth limiter on ||S||_F
       d. U = alpha P N + b S
    6. W <- (W - s U)(1 - lr wd),  s = lr sqrt(1 - b2^t) / (1 - b1^t)   (s = lr without `correct_bias`)

    Step 5 is computed without S, in one product with P:

    c'. ||S||_F^2 = sum over j of phi_j^2 (||G_j||^2 - a (2 - a) ||R_j||^2), as P^T P = I
    d'. U = (b / f) G diag(phi) + P (alpha N - (a b / f) R diag(phi))

    (A callable's basis need not be orthonormal: there c' forms S for its norm.)

    `residual` "reference" (the authors' code): a = alpha, b = 1. "orthogonal" (the paper): a = 1, b = alpha.
    With alpha = 1 they agree. With the recipes' alpha = 0.25 the reference leaves three quarters of the
    in-subspace gradient in S, so ||S|| is several times the paper's (docs/methods/fira.md). Default: the
    reference, to which the published recipes and results belong.

    State per matrix for d = min(m, n), L = max(m, n): the basis `left` or `right` (r d elements), `exp_avg`
    and `exp_avg_sq` (2 r L), `norm` (1), and `step`. Role: "matrix"; all other parameters by built-in AdamW
    of the form "hf" (steps 3, 4 and 6 with R = G, U = N).
    FLOPs per step: 4 m n r + 22 r L + 8 m n, and GaLore's for the refreshed bases.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate; 0.01 is the released scripts' for 60M to 1B.
        rank: Rank r of the basis, clipped to min(m, n); a float in (0, 1] is a fraction of min(m, n), rounded
            down. 128 is the released scripts' at 60M.
        update_proj_gap: Steps between two refreshes of a basis; 200 as published.
        alpha: Factor of the part inside the subspace (groups may also call it `scale`); 0.25 as published.
        proj_type: Side of the basis. std: the smaller dimension is projected away (of a square matrix: the
            right); reverse_std: the larger; left, right: that side; full is refused.
        projection: How a basis is made. svd: leading singular vectors of G; range_finder: the same,
            randomized and cheaper; warm: exact at first, then one block power step from the basis before;
            random: orthonormalized normal numbers; in Python also a callable (G, rank, side, step) that
            returns a basis.
        residual: Which part of the gradient counts as outside of the subspace. reference: as in the authors'
            code; orthogonal: as in the paper.
        limiter: Limiter of the growth of the outside part, per matrix. safe: zero and non-finite updates do
            not count; reference: the authors' code; off: none.
        gamma: Factor by which that part may grow in one step; 1.01 is the authors'.
        stagger: Refresh the matrices' bases one after the other over the period, so that no step pays for
            all.
        seed: Seed of random bases; none: 0, and in `lowrise train` the run's.
        betas: Decay rates b1, b2 of the two moments; the released code's.
        eps: Added to the root of the second moment, before bias correction.
        weight_decay: Decoupled weight decay wd, after the update; off as in the released scripts.
        correct_bias: Adam's correction of the moments for their start at zero.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    alias = ("scale", "alpha")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        rank: int | float = 128,
        update_proj_gap: int = 200,
        alpha: float = 0.25,
        proj_type: ProjType = "std",
        projection: Projection = "svd",
        residual: Literal["reference", "orthogonal"] = "reference",
        limiter: Limiter = "safe",
        gamma: float = GAMMA,
        stagger: bool = False,
        seed: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        check_limiter("Fira", group)
        if group["proj_type"] == "full":
            raise UsageError(
                'Fira has proj_type = "full", where no dimension is left whose vectors could be scaled; '
                "choose std, reverse_std, left or right."
            )

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        (layout,) = super()._state_layout(role, shapes, options)
        return ({**layout, "norm": ()},)

    def _directions(self, group: dict[str, Any], batches: Sequence[Batch], rate: float) -> Iterator[Tensor]:
        alpha, as_coded = group["alpha"], group["residual"] == "reference"
        a, b = (alpha, 1.0) if as_coded else (1.0, alpha)
        norms, phis = residual_norms(batches, a=a, orthonormal=not callable(group["projection"]))
        limited = limiting_factors(norms, group, batches).mul_(b * rate)
        torch._foreach_mul_([batch.N for batch in batches], alpha * rate)
        for batch, phi, factor in zip(
            batches, phis, limited.split([len(batch.members) for batch in batches]), strict=True
        ):
            kept = phi * factor
            inside = batch.N.addcmul_(batch.R, kept, value=-a)
            yield (batch.G * kept).baddbmm_(*back(inside, batch.bases))

    @classmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        (layout,) = cls._state_layout("matrix", ((m, n),), options)
        return 2 * m * n * r + 5 * m * n + 8 * math.prod(layout["exp_avg"])


def residual_norms(
    batches: Sequence[Batch], *, a: float, orthonormal: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """||S||_F of step b (matrices,), from norms of vectors if the basis is orthonormal; and phi of step a for
    each batch.

    Their squares cancel where nearly all of G is in the subspace and a = 1: the relative error is below
    16 eps ||G||^2 / ||S||^2 (float32: 2e-2 where S has a hundredth of the norm; rounding of the basis), and
    norms of about sqrt(eps) ||G|| are rounding.
    """
    phi, phis, of_R = channel_factors(batches)
    if not orthonormal:
        rests = [
            torch.baddbmm(batch.G, *back(batch.R, batch.bases), alpha=-a) * own
            for batch, own in zip(batches, phis, strict=True)
        ]
        return frobenius(rests).flatten(), phis
    lines, parts = line_norms([batch.G for batch in batches], [channel_dim(batch) for batch in batches])
    lines.square_().sub_(of_R.square_().mul_(a * (2.0 - a))).clamp_(min=0.0).sqrt_().mul_(phi)
    return frobenius(parts).flatten(), phis
