"""Fira (Chen et al. 2024, arXiv 2410.01623, Algorithm 1; the form and defaults of github.com/xichen-fy/Fira).

Steps 1 to 4 and 6 of `projected.py`. Step 5, for "left" (columns; "right": rows):

a. phi_j = ||N_j|| / (||R_j|| + 1e-8) per column: how much Adam scaled that column of R
b. S = (G - a P R) diag(phi)         what GaLore throws away, scaled alike
c. S <- S / f, f from the norm-growth limiter (`growth_limit.py`) on ||S||_F
d. U = alpha P N + b S

`residual` "reference" (the authors' code): a = alpha, b = 1. "orthogonal" (the paper): a = 1, b = alpha. With
alpha = 1 they agree. With the recipes' alpha = 0.25 the reference leaves three quarters of the in-subspace
gradient in S, so ||S|| is several times the paper's (docs/methods/fira.md). Default: the reference, to which
the published recipes and results belong.

`limiter` "safe" (default) is without the trap of zero gradients, "reference" is the authors'.

State per matrix for d = min(m, n), L = max(m, n): r d + 2 r L + 1 elements (`norm`), and `step`.
FLOPs of a step: 6 m n r + 14 r L + 10 m n, and GaLore's renewals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.base import Optimizer
from lowrise.optim.growth_limit import GAMMA, Limiter, check_limiter
from lowrise.optim.projected import Member, ProjectedAdam, channel_factors, limit_
from lowrise.optim.projection import Projection, ProjType, add_back_, sides_of
from lowrise.optim.units import Layout, Shape


class Fira(ProjectedAdam):
    """GaLore plus the rest of the gradient, scaled and limited; see the module's docstring."""

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
        """rank: of the basis; a fraction below 1 is a share of min(m, n).
        update_proj_gap: updates between two renewals of the basis.
        alpha: factor of the part inside the subspace.
        proj_type: the side of the basis; std projects the smaller dimension away.
        projection: how a basis is made, or a callable.
        residual: which part of the gradient counts as outside, as coded or as published.
        limiter: of the growth of the outside part, per matrix.
        gamma: by which that part may grow in one update.
        stagger: renew the matrices' bases one after the other over the period.
        seed: of random bases; None is 0, in `lowrise train` the run's.
        correct_bias: Adam's correction of the moments' start at zero.
        """
        options: dict[str, Any] = {"lr": lr, "rank": rank, "update_proj_gap": update_proj_gap}
        options |= {"alpha": alpha}
        options |= {"proj_type": proj_type, "projection": projection, "stagger": stagger, "seed": seed}
        options |= {"residual": residual, "limiter": limiter, "gamma": gamma}
        options |= {"betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        Optimizer.__init__(self, params, options)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        check_limiter("Fira", group)
        if group["residual"] not in ("reference", "orthogonal"):
            raise UsageError(f"Fira has residual = {group['residual']!r}; choose reference or orthogonal.")
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

    def _direction(
        self, group: dict[str, Any], members: Sequence[Member], G: Tensor, R: Tensor, N: Tensor,
        bases: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        alpha, as_coded = group["alpha"], group["residual"] == "reference"
        (side,) = sides_of(group["proj_type"], G.shape)
        S = add_back_(G, R, bases, alpha=-alpha if as_coded else -1.0)
        S.mul_(channel_factors(N, R, side))
        limit_(S, group, members)
        return add_back_(S, N, bases, alpha=alpha, beta=1.0 if as_coded else alpha)

    @classmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        return 4 * m * n * r + 7 * m * n
