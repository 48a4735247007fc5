"""APOLLO and APOLLO-Mini: the scaled gradient; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.norms import frobenius
from lowrise.linalg.rank import resolve_rank
from lowrise.optim.engine.projected_adam import (
    Batch,
    Member,
    ProjectedAdam,
    channel_factors,
    limiting_factors,
)
from lowrise.optim.engine.units import Layout, Shape, stacked
from lowrise.optim.rules.growth_limiter import GAMMA, Limiter, check_limiter
from lowrise.optim.rules.projection import Projection, ProjType, normal_bases, sides_of


class APOLLO(ProjectedAdam):
    """APOLLO and APOLLO-Mini: the gradient, scaled per channel or as a whole by what Adam does in a random
    projection (Zhu et al. 2024, arXiv 2412.05270, Algorithm 1), from the paper and from what the authors'
    code computes.

    Per matrix W (m x n) with gradient G, t = number of this step from 1, projection P on one side (written
    here for "left", P m x r with entries N(0, 1/r), not orthonormal; "right": P n x r, R = G P, rows):

    1. refresh P if it is due
    2. R = P^T G                                            (r x n)
    3. M <- b1 M + (1 - b1) R;  V <- b2 V + (1 - b2) R R    (moments are kept when P is refreshed)
    4. N = M / (sqrt(V) + eps)                              (eps on the uncorrected root)
    5. the direction U (m x n): the raw gradient, for which Adam in the projection only says how much to scale
       it
       a. phi: scale_type "channel": ||N_j|| / (||R_j|| + 1e-8) per column for "left", per row for "right";
          "tensor": ||N||_F / (||R||_F + 1e-8), one number
       b. U = G phi
       c. U <- U / f, f from the norm-growth limiter on ||U||_F
       d. U <- U sqrt(scale)
    6. W <- (W - s U)(1 - lr wd),  s = lr sqrt(1 - b2^t) / (1 - b1^t)   (s = lr without `correct_bias`)

    APOLLO-Mini is rank = 1, scale_type = "tensor", scale = 128.

    ||R_j|| is about ||G_j|| while ||N_j|| is about sqrt(r), where full Adam has sqrt(d), d = min(m, n): a
    factor is sqrt(r / d) times that of full rank. `relative_scale` multiplies `scale` by d / r, so that a
    step keeps its size when the rank changes (the published recipes do not).

    P is a function of (seed, parameter name, step of its last refresh) and is computed again at every step,
    so nothing is stored: 2 r L + 1 elements (`exp_avg`, `exp_avg_sq`, `norm`) per matrix, L = max(m, n), and
    `step`. `store_projection` keeps it, r d elements more, for a faster step. projection = "svd" and the like
    use GaLore's bases, and keep them. Role: "matrix"; all other parameters by built-in AdamW of the form "hf"
    (steps 3, 4 and 6 with R = G, U = N).
    FLOPs per step: 2 m n r + 14 r L + 8 m n, and 20 r d for the normal numbers.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate; 0.01 is the released scripts' for 60M to 1B.
        rank: Rank r of the projection, clipped to min(m, n); a float in (0, 1] is a fraction of min(m, n),
            rounded down. 128 is the released scripts' at 60M, 1 that of APOLLO-Mini.
        update_proj_gap: Steps between two refreshes of a projection; 200 as published.
        scale: The update is multiplied by its root; 1 as published, 128 for APOLLO-Mini. Groups may also call
            it `alpha`.
        scale_type: One factor per channel, or one for the whole tensor (APOLLO-Mini).
        scale_front: Apply the scale before the limiter; the same weights to rounding.
        relative_scale: Multiply the scale by min(m, n) / rank, so that the rank does not change the step.
        proj_type: Side that is projected away. std: the smaller dimension (of a square matrix: the right);
            reverse_std: the larger; left, right: that side; full is refused.
        projection: How a projection is made. random: normal numbers; svd: leading singular vectors of G;
            range_finder: the same, randomized and cheaper; warm: exact at first, then one block power step
            from the basis before; in Python also a callable (G, rank, side, step) that returns a basis.
        store_projection: Keep random projections in the state instead of computing them at every step.
        limiter: Limiter of the growth of the update, per matrix. safe: zero and non-finite updates do not
            count; reference: the authors' code; off: none.
        gamma: Factor by which the update may grow in one step; 1.01 is the authors'.
        stagger: Refresh the matrices' projections one after the other over the period.
        seed: Seed of random projections; none: 0, and in `lowrise train` the run's.
        betas: Decay rates b1, b2 of the two moments; the released code's.
        eps: Added to the root of the second moment, before bias correction.
        weight_decay: Decoupled weight decay wd, after the update; off as in the released scripts.
        correct_bias: Adam's correction of the moments for their start at zero.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

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
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        super()._check_options(group)
        check_limiter("APOLLO", group)
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

    def _all_bases(
        self, group: dict[str, Any], chunk: Sequence[Sequence[Member]], stacks: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        if group["projection"] != "random" or group["store_projection"]:
            return super()._all_bases(group, chunk, stacks)
        draws, sides = [], []
        for members, G in zip(chunk, stacks, strict=True):
            (side,) = sides_of(group["proj_type"], G.shape)
            keys, renewals = [m.key for m in members], [m.renewal for m in members]
            sides.append(side)
            draws.append((keys, renewals, side, *self._basis_shape(group, G, side)))
        drawn = normal_bases(group["seed"] or 0, draws, stacks[0])
        return [{side: P} for side, P in zip(sides, drawn, strict=True)]

    def _bases(self, group: dict[str, Any], members: Sequence[Member], G: Tensor) -> dict[str, Tensor]:
        if group["projection"] != "random":
            return super()._bases(group, members, G)
        (side,) = sides_of(group["proj_type"], G.shape)
        due = [member for member in members if member.step == member.renewal]
        if due:
            P = self._normal(group, due, side, G, *self._basis_shape(group, G, side))
            torch._foreach_copy_([member.state[side] for member in due], list(P.unbind()))
        return {side: stacked([member.state[side] for member in members])}

    def _basis_shape(self, group: Mapping[str, Any], G: Tensor, side: str) -> tuple[int, int]:
        """(d, r) of a projection for that side of G."""
        return G.shape[-2 if side == "left" else -1], self._rank(tuple(G.shape[-2:]), group)

    def _directions(self, group: dict[str, Any], batches: Sequence[Batch], rate: float) -> list[Tensor]:
        counts = [len(batch.members) for batch in batches]
        roots = [self._root(group, tuple(batch.G.shape[-2:])) for batch in batches]
        factors = self._factors(group, batches)
        if group["scale_front"]:
            torch._foreach_mul_(factors, roots)
        Us = [batch.G * own for batch, own in zip(batches, factors, strict=True)]
        limited = limiting_factors(frobenius(Us).flatten(), group, batches).split(counts)
        rates = [rate if group["scale_front"] else rate * root for root in roots]
        torch._foreach_mul_(list(limited), rates)
        for U, kept in zip(Us, limited, strict=True):
            U.mul_(kept)
        return Us

    def _root(self, group: Mapping[str, Any], shape: tuple[int, ...]) -> float:
        """sqrt(scale) for matrices of a shape."""
        scale = group["scale"]
        if group["relative_scale"]:
            scale *= min(shape) / self._rank(shape, group)
        return math.sqrt(scale)

    @staticmethod
    def _factors(group: Mapping[str, Any], batches: Sequence[Batch]) -> list[Tensor]:
        """Step 5a, as (batch, m or 1, n or 1) for each batch."""
        if group["scale_type"] == "channel":
            return channel_factors(batches)[1]
        of_N, of_R = (frobenius([getattr(batch, name) for batch in batches]) for name in "NR")
        return list((of_N / (of_R + 1e-8)).split([len(batch.members) for batch in batches]))

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
