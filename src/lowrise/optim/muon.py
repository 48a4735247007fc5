"""Muon: momentum orthogonalized by Newton-Schulz; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowrise.linalg.polar import QUINTIC, newton_schulz_each
from lowrise.optim.engine.matrix import Matrices, MatrixOptimizer, gradients, states
from lowrise.optim.engine.product_decay import Decay
from lowrise.optim.rules.orthogonal import (
    NsDtype,
    check_newton_schulz,
    iteration_dtype,
    iteration_flops,
    shape_rate,
)

AdjustLr = Literal["match_rms_adamw", "original"]


class Muon(MatrixOptimizer):
    """Muon (Jordan et al. 2024, KellerJordan/Muon), with the semantics of torch.optim.Muon 2.13.

    Per matrix W (m x n) with gradient G, state M (m x n) from zero, learning rate lr, momentum mu:

    1. M <- M + (1 - mu)(G - M)
    2. D = G + mu (M - G) with Nesterov, else D = M                                        (m x n)
    3. O = quintic Newton-Schulz, five steps, from D / max(||D||_F, eps)                    (m x n)
    4. W <- W (1 - lr wd), with the unadjusted lr
    5. W <- W - lr_adj O, where
       "original":         lr_adj = lr sqrt(max(1, m/n))
       "match_rms_adamw":  lr_adj = lr 0.2 sqrt(max(m, n))      (Moonlight, arXiv 2502.16982)

    Where we differ from torch: the dtype of the iteration is an option; the stored momentum is never
    normalized in place (torch 2.13.0 does that for bfloat16 weights without Nesterov); "match_rms_adamw" is
    the default, so that one grid of learning rates and decays serves AdamW and Muon in a comparison; weight
    decay is off by default (torch: 0.1). Newton-Schulz divides after scaling by max|D|, so huge gradients do
    not overflow.

    State per matrix: `momentum` (m n elements), and `step`. Roles: "matrix"; for "factors" each factor is a
    matrix of its own ("low-rank Muon"); all other parameters by built-in AdamW.
    FLOPs per step, p = min(m, n), q = max(m, n): ns_steps (4 p^2 q + 2 p^3) + 10 p q in the plain form, which
    is what is counted; where q >= 2.2 p the Gram form (linalg/polar.py) needs 4 p^2 q + 34 p^3 instead.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate before the adjustment of step 5; 1e-3 is torch's default.
        momentum: Decay rate mu of the average of gradients; 0.95 is Jordan's and torch's.
        nesterov: Orthogonalize G + mu (M - G) instead of the average M alone.
        weight_decay: Decoupled weight decay wd, with the unadjusted lr; off by default (torch: 0.1).
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries.
        adjust_lr: How lr depends on the shape, step 5. match_rms_adamw: 0.2 sqrt(max(m, n)), updates of
            AdamW's size; original: sqrt(max(1, m/n)), Jordan's.
        ns_steps: Newton-Schulz iterations; 5 is Jordan's.
        ns_coefficients: The quintic's a, b, c; the default is Jordan's.
        ns_eps: Least Frobenius norm that D is divided by; 1e-7 is torch's.
        ns_dtype: Dtype of the iteration. auto: bfloat16 on CUDA, as published, elsewhere float32, and
            float64 for float64 weights. fast: bfloat16 also on processors with instructions for it, so that
            a CPU run depends on the processor's kind.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "factors"})
    uses_step: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        decay: Decay = "entries",
        adjust_lr: AdjustLr = "match_rms_adamw",
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = QUINTIC,
        ns_eps: float = 1e-7,
        ns_dtype: NsDtype = "auto",
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        check_newton_schulz("Muon", group)

    @classmethod
    def state_shapes(cls, m: int, n: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"momentum": (m, n)}

    def directions(self, batches: Sequence[Matrices], options: Mapping[str, Any], step: int) -> list[Tensor]:
        Ds = averaged(batches, options["momentum"], nesterov=options["nesterov"])
        return newton_schulz_each(
            Ds,
            steps=options["ns_steps"],
            coefficients=options["ns_coefficients"],
            eps=options["ns_eps"],
            eps_rule="max",
            dtype=iteration_dtype(options["ns_dtype"], Ds[0]),
        )

    @classmethod
    def step_scale(cls, m: int, n: int, options: Mapping[str, Any]) -> float:
        return shape_rate(m, n, options["adjust_lr"])

    @classmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        return iteration_flops(m, n, options["ns_steps"]) + 10 * m * n


def averaged(batches: Sequence[Matrices], momentum: float, *, nesterov: bool) -> list[Tensor]:
    """Steps 1 and 2 for all matrices: D of each, a new tensor with Nesterov."""
    Gs, Ms = gradients(batches), states(batches, "momentum")
    torch._foreach_lerp_(Ms, Gs, 1.0 - momentum)
    return list(torch._foreach_lerp(Gs, Ms, momentum)) if nesterov else Ms
