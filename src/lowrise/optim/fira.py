"""Fira (Chen et al. 2024, arXiv 2410.01623, Algorithm 1; the form and defaults of github.com/xichen-fy/Fira).

Steps 1 to 4 and 6 of `projected.py`. Step 5, for "left" (columns; "right": rows):

a. phi_j = ||N_j|| / (||R_j|| + 1e-8) per column: how much Adam scaled that column of R
b. S = (G - a P R) diag(phi)         what GaLore throws away, scaled alike
c. S <- S / f, f from the norm-growth limiter (`growth_limit.py`) on ||S||_F
d. U = alpha P N + b S

computed without S, in one product with P:

c'. ||S||_F^2 = sum over j of phi_j^2 (||G_j||^2 - a (2 - a) ||R_j||^2), as P^T P = I
d'. U = (b / f) G diag(phi) + P (alpha N - (a b / f) R diag(phi))

(A callable's basis need not be orthonormal: there c' forms S for its norm.)

`residual` "reference" (the authors' code): a = alpha, b = 1. "orthogonal" (the paper): a = 1, b = alpha. With
alpha = 1 they agree. With the recipes' alpha = 0.25 the reference leaves three quarters of the in-subspace
gradient in S, so ||S|| is several times the paper's (docs/methods/fira.md). Default: the reference, to which
the published recipes and results belong.

`limiter` "safe" (default) is without the trap of zero gradients, "reference" is the authors'.

State per matrix for d = min(m, n), L = max(m, n): r d + 2 r L + 1 elements (`norm`), and `step`.
FLOPs of a step: 4 m n r + 22 r L + 8 m n, and GaLore's renewals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.projected_adam import (
    Member,
    ProjectedAdam,
    channel_factors,
    frobenius,
    limiting_factors,
)
from lowrise.optim.engine.units import Layout, Shape
from lowrise.optim.rules.growth_limiter import GAMMA, Limiter, check_limiter
from lowrise.optim.rules.projection import Projection, ProjType, back, sides_of


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
        """rank: of the basis; a float up to 1.0 is a share of min(m, n), rounded down.
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
        a, b = (alpha, 1.0) if as_coded else (1.0, alpha)
        phi = channel_factors(N, R, side)
        orthonormal = not callable(group["projection"])
        norms = residual_norms(G, R, phi, bases, a=a, side=side, orthonormal=orthonormal)
        kept = phi * (b * limiting_factors(norms, group, members))
        inside = (N * alpha).addcmul_(R, kept, value=-a)
        return (G * kept).baddbmm_(*back(inside, bases))

    @classmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        (layout,) = cls._state_layout("matrix", ((m, n),), options)
        return 2 * m * n * r + 5 * m * n + 8 * math.prod(layout["exp_avg"])


def residual_norms(
    G: Tensor,
    R: Tensor,
    phi: Tensor,
    bases: Mapping[str, Tensor],
    *,
    a: float,
    side: str,
    orthonormal: bool = True,
) -> Tensor:
    """||S||_F of step b for G (batch, m, n), as (batch,); from norms of vectors if the basis is orthonormal.

    Their squares cancel where nearly all of G is in the subspace and a = 1: the relative error is below
    16 eps ||G||^2 / ||S||^2 (float32: 2e-2 where S has a hundredth of the norm; rounding of the basis), and
    norms of about sqrt(eps) ||G|| are rounding.
    """
    if not orthonormal:
        return frobenius(torch.baddbmm(G, *back(R, bases), alpha=-a) * phi)
    dim = -2 if side == "left" else -1
    of_G, of_R = (torch.linalg.vector_norm(X, dim=dim, keepdim=True) for X in (G, R))
    squares = (of_G.square() - a * (2.0 - a) * of_R.square()).clamp_(min=0.0)
    return (squares.sqrt_() * phi).square_().sum(dim=(-2, -1)).sqrt_()
