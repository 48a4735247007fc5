"""GaLore: Adam in a subspace of the gradient; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowrise.optim.engine.hyperball import holds_norm
from lowrise.optim.engine.projected_adam import Batch, ProjectedAdam
from lowrise.optim.rules.projection import Projection, ProjType, back


class GaLore(ProjectedAdam):
    """GaLore: Adam in the leading singular subspace of the gradient (Zhao et al. 2024, arXiv 2403.03507,
    Algorithm 2; defaults of github.com/jiaweizzhao/GaLore).

    Per matrix W (m x n) with gradient G, t = number of this step from 1, basis P on one side (written here
    for "left", P m x r; "right": P n x r, R = G P, U = scale N P^T; "full": both, U = scale P N Q^T):

    1. refresh P if it is due: the r leading singular vectors of G, signs aligned with the old ones
    2. R = P^T G                                            (r x n)
    3. M <- b1 M + (1 - b1) R;  V <- b2 V + (1 - b2) R R    (moments are kept when P is refreshed)
    4. N = M / (sqrt(V) + eps)                              (eps on the uncorrected root)
    5. U = scale P N                                        (m x n)
    6. W <- (W - s U)(1 - lr wd),  s = lr sqrt(1 - b2^t) / (1 - b1^t)   (s = lr without `correct_bias`)

    So the weight moves within the current subspace alone. The mathematics is that of the authors' code where
    it differs from the paper: eps on the uncorrected root, bias correction as a factor of the step size,
    decay after the update, a square matrix is projected from the right. Where we differ from the code: bases
    are plain tensors, complete from construction, float32 for bfloat16 weights; signs are aligned; a gradient
    that is zero or not finite leaves the basis as it is.

    State per matrix for d = min(m, n), L = max(m, n): the basis `left` or `right` (r d elements), `exp_avg`
    and `exp_avg_sq` (2 r L), and `step`. Role: "matrix"; all other parameters by built-in AdamW of the form
    "hf" (steps 3, 4 and 6 with R = G, U = N).
    FLOPs per step: 4 m n r + 14 r L + 4 m n, and (2 d^2 L + 9 d^3) / T for the refreshed bases.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate; 0.01 is the released scripts' for 60M to 1B.
        rank: Rank r of the basis, clipped to min(m, n); a float in (0, 1] is a fraction of min(m, n), rounded
            down. 128 is the released scripts' at 60M.
        update_proj_gap: Steps T between two refreshes of a basis; 200 as published.
        scale: Factor of the update (alpha in the paper, a name that groups may use too); 0.25 as published.
        proj_type: Side of the basis. std: the smaller dimension is projected away (of a square matrix: the
            right); reverse_std: the larger; left, right: that side; full: both sides.
        projection: How a basis is made. svd: leading singular vectors of G; range_finder: the same,
            randomized and cheaper; warm: exact at first, then one block power step from the basis before;
            random: orthonormalized normal numbers; in Python also a callable (G, rank, side, step) that
            returns a basis.
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
        super().__init__(params, self.options(locals()))

    def _move_weights(
        self, group: dict[str, Any], batches: Sequence[Batch], rate: float, keep: float
    ) -> None:
        """On a CPU the last product goes into the weight itself, without a pass over the update; elsewhere
        it is one product for all matrices of a shape.
        """
        weights = [member.unit.params[0] for batch in batches for member in batch.members]
        plain = all(W.device.type == "cpu" and W.dtype == batches[0].N.dtype for W in weights)
        if holds_norm(group) or not plain:
            super()._move_weights(group, batches, rate, keep)
            return
        torch._foreach_mul_([batch.N for batch in batches], group["scale"] * rate)
        pairs = (pair for batch in batches for pair in zip(*back(batch.N, batch.bases), strict=True))
        for W, (left, right) in zip(weights, pairs, strict=True):
            W.addmm_(left, right, beta=keep, alpha=-1.0)

    def _directions(self, group: dict[str, Any], batches: Sequence[Batch], rate: float) -> Iterator[Tensor]:
        torch._foreach_mul_([batch.N for batch in batches], group["scale"] * rate)
        for batch in batches:
            yield torch.matmul(*back(batch.N, batch.bases))

    @classmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        return cls._projection_flops(m, n, r, options) + m * n
