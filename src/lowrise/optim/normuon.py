"""NorMuon: Muon with rows of about one size; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.norms import frobenius
from lowrise.linalg.polar import QUINTIC
from lowrise.optim.engine.matrix import Matrices, MatrixOptimizer, gradients, states
from lowrise.optim.engine.product_decay import Decay
from lowrise.optim.engine.units import stacked
from lowrise.optim.muon import averaged
from lowrise.optim.rules.orthogonal import (
    NsDtype,
    Ortho,
    ShapeRate,
    check_newton_schulz,
    iteration_dtype,
    orthogonal_flops,
    orthogonalized,
    shape_rate,
)

Accumulate = Literal["average", "sum"]


class NorMuon(MatrixOptimizer):
    """NorMuon (Li et al. 2025, arXiv 2510.05491; code zichongli5/NorMuon): Muon whose orthogonalized momentum
    has every row divided by the root of a running mean of its squares.

    Per matrix W (m x n) with gradient G, momentum M (m x n) and row second moment v (m x 1) from zero,
    learning rate lr, momentum mu:

    1. M <- mu M + (1 - mu) G, D = mu M + (1 - mu) G with Nesterov, else D = M;
       accumulate "sum": M <- mu M + G, D = mu M + G or M                                      (m x n)
    2. O = quintic Newton-Schulz, five steps, from D / max(||D||_F, ns_eps)                     (m x n)
    3. v <- b2 v + (1 - b2) mean_j O_ij^2                                                       (m x 1)
    4. P = O / (sqrt(v) + norm_eps);  U = P ||O||_F / (||P||_F + norm_eps)                      (m x n)
    5. W <- W (1 - lr wd), with the unadjusted lr
    6. W <- W - lr c U, where c is Muon's by default and by `adjust_lr`

    A common factor of all v cancels in 4, so v needs no bias correction. Where we differ from the authors'
    code: the dtype of the iteration is an option, the norm of D has a least value instead of 1e-7 added to
    it, the gradient is not overwritten, and c is `match_rms_adamw` by default, as in our Muon (theirs is
    "original", with lr = 0.02). docs/methods/normuon.md says how microsoft/dion's differs.

    Row means need whole rows: sharded matrices are moved by an owner that has them whole.

    State per matrix: `momentum` (m n elements), `row_second_moment` (m), and `step`. Roles: "matrix"; for
    "factors" each factor is a matrix of its own; all other parameters by built-in AdamW.
    FLOPs per step: those of the iteration (as Muon), and 18 m n.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate before c; 1e-3 as in our Muon.
        momentum: Decay rate mu of the momentum; 0.95 as published.
        beta2: Decay rate b2 of the row second moments; 0.95 as published. 0: all rows of an update have one
            RMS.
        nesterov: Orthogonalize mu M + (1 - mu) G instead of M alone.
        accumulate: What the momentum is. average: of gradients, the authors'; sum: of decayed gradients, as
            in microsoft/dion. Without Nesterov the update is the same but for eps.
        weight_decay: Decoupled weight decay wd, with the unadjusted lr; 0 as published.
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries.
        adjust_lr: c of step 6. match_rms_adamw: 0.2 sqrt(max(m, n)), updates of AdamW's size; original:
            sqrt(max(1, m/n)), the authors'; spectral: sqrt(m/n), microsoft/dion's; none: 1.
        ortho: How D is orthogonalized. ns5: the quintic, as published; pe: Polar Express, seven steps; svd:
            exactly, slow, waits for the device.
        ns_steps: Newton-Schulz iterations of ns5; 5 as published.
        ns_coefficients: The quintic's a, b, c; Jordan's, as published.
        ns_eps: Least Frobenius norm that D is divided by in ns5.
        ns_dtype: Dtype of ns5. auto: bfloat16 on CUDA, as published, elsewhere float32, and float64 for
            float64 weights; fast: as in Muon.
        norm_eps: Added to the roots and norms of step 4; 1e-10 as published.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "factors"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        accumulate: Accumulate = "average",
        weight_decay: float = 0.0,
        decay: Decay = "entries",
        adjust_lr: ShapeRate = "match_rms_adamw",
        ortho: Ortho = "ns5",
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = QUINTIC,
        ns_eps: float = 1e-7,
        ns_dtype: NsDtype = "auto",
        norm_eps: float = 1e-10,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        check_newton_schulz("NorMuon", group)
        if not 0.0 <= group["beta2"] < 1.0:
            raise UsageError(f"NorMuon has beta2 = {group['beta2']}; it must be at least 0 and below 1.")
        if not group["norm_eps"] > 0.0:
            raise UsageError(
                f"NorMuon has norm_eps = {group['norm_eps']}; it must be above 0 (1e-10 as published), "
                "because rows without a gradient are zero."
            )

    @classmethod
    def state_shapes(cls, m: int, n: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"momentum": (m, n), "row_second_moment": (m, 1)}

    def directions(self, batches: Sequence[Matrices], options: Mapping[str, Any], step: int) -> list[Tensor]:
        mu, nesterov = options["momentum"], options["nesterov"]
        if options["accumulate"] == "sum":
            Gs, Ds = gradients(batches), states(batches, "momentum")
            torch._foreach_mul_(Ds, mu)
            torch._foreach_add_(Ds, Gs)
            if nesterov:
                Ds = list(torch._foreach_add(Gs, Ds, alpha=mu))
        else:
            Ds = averaged(batches, mu, nesterov=nesterov)
        Os = iter(orthogonalized(Ds, options, dtype=iteration_dtype(options["ns_dtype"], Ds[0])))
        stacks = [stacked([next(Os) for _ in batch.grads]) for batch in batches]
        moments = [batch.state("row_second_moment") for batch in batches]
        rows_evened_(stacks, moments, beta2=options["beta2"], eps=options["norm_eps"])
        return [U for X in stacks for U in X.unbind()]

    @classmethod
    def step_scale(cls, m: int, n: int, options: Mapping[str, Any]) -> float:
        return shape_rate(m, n, options["adjust_lr"])

    @classmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        # Muon's 10; row means 2, quotient 1, two norms 4, factor 1.
        return orthogonal_flops(m, n, options) + 18 * m * n


def rows_evened_(
    stacks: Sequence[Tensor], moments: Sequence[Sequence[Tensor]], *, beta2: float, eps: float
) -> None:
    """Steps 3 and 4 for stacks O (batch, m, n), which become U; with v (m, 1) of each matrix, in place."""
    counts = [len(X) for X in stacks]
    norms = frobenius(stacks)
    means = [X.square().mean(dim=-1, keepdim=True) for X in stacks]
    vs = [v for of_stack in moments for v in of_stack]
    torch._foreach_lerp_(vs, [mean for of_stack in means for mean in of_stack.unbind()], 1.0 - beta2)
    roots = torch._foreach_sqrt(vs)
    torch._foreach_add_(roots, eps)
    rest = iter(roots)
    for X, count in zip(stacks, counts, strict=True):
        X.div_(stacked([next(rest) for _ in range(count)]))
    factors = norms / (frobenius(stacks) + eps)
    for X, factor in zip(stacks, factors.split(counts), strict=True):
        X.mul_(factor)
