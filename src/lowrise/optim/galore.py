"""GaLore (Zhao et al. 2024, arXiv 2403.03507, Algorithm 2; defaults of github.com/jiaweizzhao/GaLore).

Steps 1 to 4 and 6 of `projected.py`, with

5. U = scale P N        ("right": scale N P^T; "full": scale P N Q^T)

so the weight moves within the current subspace alone. The mathematics is that of the authors' code where it
differs from the paper: eps on the uncorrected root, bias correction as a factor of the step size, decay after
the move, a square matrix is projected from the right.

State per matrix for d = min(m, n), L = max(m, n): r d + 2 r L elements, and `step`.
FLOPs of a step: 4 m n r + 14 r L + 4 m n, and (2 d^2 L + 9 d^3) / T for the renewals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.projected_adam import Member, ProjectedAdam
from lowrise.optim.rules.projection import Projection, ProjType, back


class GaLore(ProjectedAdam):
    """Adam in the leading singular subspace of the gradient; see the module's docstring."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        rank: int | float = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: ProjType = "std",
        projection: Projection = "svd",
        stagger: bool = False,
        seed: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        """rank: of the basis; a float up to 1.0 is a share of min(m, n), rounded down.
        update_proj_gap: updates between two renewals of the basis.
        scale: factor of the update (alpha in the paper).
        proj_type: the side of the basis; std projects the smaller dimension away.
        projection: how a basis is made, or a callable.
        stagger: renew the matrices' bases one after the other over the period.
        seed: of random bases; None is 0, in `lowrise train` the run's.
        correct_bias: Adam's correction of the moments' start at zero.
        """
        options: dict[str, Any] = {"lr": lr, "rank": rank, "update_proj_gap": update_proj_gap}
        options |= {"scale": scale}
        options |= {"proj_type": proj_type, "projection": projection, "stagger": stagger, "seed": seed}
        options |= {"betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        Optimizer.__init__(self, params, options)

    def _direction(
        self, group: dict[str, Any], members: Sequence[Member], G: Tensor, R: Tensor, N: Tensor,
        bases: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        return torch.matmul(*back(N * group["scale"], bases))

    @classmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        return cls._projection_flops(m, n, r, options) + m * n
