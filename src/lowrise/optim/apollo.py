"""APOLLO and APOLLO-Mini (Zhu et al. 2024, arXiv 2412.05270, Algorithm 1), from the paper and from what the
authors' code computes.

Steps 1 to 4 and 6 of `projected.py`, where P (m x r for "left") has entries N(0, 1/r), not orthonormal. The
raw gradient is the direction, and Adam in the projection only says how much to scale it. Step 5:

a. phi: scale_type "channel": ||N_j|| / (||R_j|| + 1e-8) per column for "left", per row for "right";
   "tensor": ||N||_F / (||R||_F + 1e-8), one number
b. U = G phi
c. U <- U / f, f from the norm-growth limiter (`growth_limit.py`) on ||U||_F
d. U <- U sqrt(scale)

`scale_front` makes d before c; with a constant scale both give the same weights to rounding. APOLLO-Mini is
rank = 1, scale_type = "tensor", scale = 128.

||R_j|| is about ||G_j|| while ||N_j|| is about sqrt(r), where full Adam has sqrt(d), d = min(m, n): a factor
is sqrt(r / d) times that of full rank. `relative_scale` multiplies `scale` by d / r, so that a step keeps its
size when the rank changes (the published recipes do not).

P is a function of (seed, parameter name, update of its last renewal) and is made anew at every update, so
nothing is stored: 2 r L + 1 elements (`norm`) per matrix, L = max(m, n), and `step`. `store_projection` keeps
it, r d elements more, for a faster update. projection = "svd" and the like use GaLore's bases, and keep them.
FLOPs of a step: 2 m n r + 14 r L + 8 m n, and 20 r d for the normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.rank import resolve_rank
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.projected_adam import (
    Member,
    ProjectedAdam,
    channel_factors,
    frobenius,
    limiting_factors,
)
from lowrise.optim.engine.units import Layout, Shape, stacked
from lowrise.optim.rules.growth_limiter import GAMMA, Limiter, check_limiter
from lowrise.optim.rules.projection import Projection, ProjType, sides_of


class APOLLO(ProjectedAdam):
    """The gradient, scaled per channel or as a whole by what Adam does in a random projection."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        rank: int | float = 128,
        update_proj_gap: int = 200,
        scale: float = 1.0,
        scale_type: Literal["channel", "tensor"] = "channel",
        scale_front: bool = False,
        relative_scale: bool = False,
        proj_type: ProjType = "std",
        projection: Projection = "random",
        store_projection: bool = False,
        limiter: Limiter = "safe",
        gamma: float = GAMMA,
        stagger: bool = False,
        seed: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        """rank: of the projection; a float up to 1.0 is a share of min(m, n), rounded down.
        update_proj_gap: updates between two renewals of the projection.
        scale: the update is multiplied by its root.
        scale_type: one factor a channel, or one a matrix.
        scale_front: apply the scale before the limiter; the same weights to rounding.
        relative_scale: multiply the scale by min(m, n) / rank, so that the rank does not change the step.
        proj_type: the side that is projected away; std takes the smaller dimension.
        projection: how a projection is made, or a callable.
        store_projection: keep random projections in the state instead of making them at every update.
        limiter: of the growth of the update, per matrix.
        gamma: by which the update may grow from one to the next.
        stagger: renew the matrices' projections one after the other over the period.
        seed: of random projections; None is 0, in `lowrise train` the run's.
        correct_bias: Adam's correction of the moments' start at zero.
        """
        options: dict[str, Any] = {"lr": lr, "rank": rank, "update_proj_gap": update_proj_gap}
        options |= {"scale": scale}
        options |= {"scale_type": scale_type, "scale_front": scale_front, "relative_scale": relative_scale}
        options |= {"proj_type": proj_type, "projection": projection, "store_projection": store_projection}
        options |= {"limiter": limiter, "gamma": gamma, "stagger": stagger, "seed": seed}
        options |= {"betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        Optimizer.__init__(self, params, options)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        check_limiter("APOLLO", group)
        if group["scale_type"] not in ("channel", "tensor"):
            raise UsageError(f"APOLLO has scale_type = {group['scale_type']!r}; choose channel or tensor.")
        if not group["scale"] >= 0:
            raise UsageError(f"APOLLO has scale = {group['scale']}; the update is multiplied by its root.")
        if group["proj_type"] == "full":
            raise UsageError(
                'APOLLO has proj_type = "full", where no dimension is left whose vectors could be scaled; '
                "choose std, reverse_std, left or right."
            )

    @classmethod
    def _rank(cls, shape: Shape, options: Mapping[str, Any]) -> int:
        rank = options["rank"]
        # A caller's own projection may have more columns than the matrix.
        return resolve_rank(rank, *shape, above="keep" if callable(options["projection"]) else "clip")

    @classmethod
    def _stores_basis(cls, options: Mapping[str, Any]) -> bool:
        return bool(options["projection"] != "random" or options["store_projection"])

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        (layout,) = super()._state_layout(role, shapes, options)
        return ({**layout, "norm": ()},)

    def _bases(self, group: dict[str, Any], members: Sequence[Member], G: Tensor) -> dict[str, Tensor]:
        if group["projection"] != "random":
            return super()._bases(group, members, G)
        (side,) = sides_of(group["proj_type"], G.shape)
        d, r = G.shape[-2 if side == "left" else -1], self._rank(tuple(G.shape[-2:]), group)
        if not group["store_projection"]:
            return {side: self._normal(group, members, side, G, d, r)}
        due = [member for member in members if member.step == member.renewal]
        if due:
            P = self._normal(group, due, side, G, d, r)
            torch._foreach_copy_([member.state[side] for member in due], list(P.unbind()))
        return {side: stacked([member.state[side] for member in members])}

    def _direction(
        self, group: dict[str, Any], members: Sequence[Member], G: Tensor, R: Tensor, N: Tensor,
        bases: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        (side,) = sides_of(group["proj_type"], G.shape)
        if group["scale_type"] == "channel":
            factors = channel_factors(N, R, side)
        else:
            factors = (frobenius(N) / (frobenius(R) + 1e-8))[:, None, None]
        scale = group["scale"]
        if group["relative_scale"]:
            scale *= min(G.shape[-2:]) / self._rank(tuple(G.shape[-2:]), group)
        root = math.sqrt(scale)
        U = G * (factors * root if group["scale_front"] else factors)
        kept = limiting_factors(frobenius(U), group, members)
        return U.mul_(kept if group["scale_front"] else kept * root)

    @classmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        return 5 * m * n

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        if options["projection"] != "random":
            return super()._unit_flops(role, shapes, options)
        (m, n) = shapes[0]
        r = cls._rank(shapes[0], options)
        (side,) = sides_of(options["proj_type"], (m, n))
        draws = 20 * r * (m if side == "left" else n)
        moments = math.prod(cls._state_layout(role, shapes, options)[0]["exp_avg"])
        every = int(options["update_proj_gap"]) if options["store_projection"] else 1
        return 2 * m * n * r + 14 * moments + 8 * m * n + draws // every
