"""Dion in its simple form (Ahn et al. 2025, arXiv 2504.05295, algorithm 1): a method in one file.

    lowrise train --plugin examples/dion.py --method dion
    lowrise methods dion --plugin examples/dion.py --size 60m

Per matrix W (m x n) with gradient G, momentum M (m x n), basis Q (n x r), learning rate lr:

1. M <- M + G
2. P = orthonormal basis of M Q                      (m x r), QR
3. R = M^T P                                         (n x r)
4. M <- M - (1 - mu) P R^T                           what was used decays, the rest is kept
5. Q <- R with columns of norm 1
6. W <- W (1 - lr wd) - lr sqrt(m / n) P Q^T
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowrise.linalg.rank import resolve_rank
from lowrise.methods import Method, register
from lowrise.optim import MatrixOptimizer
from lowrise.rng import counter_normal, key_of


class Dion(MatrixOptimizer):
    """Orthonormal updates of rank r with error feedback; other roles by built-in AdamW.

    Args:
        lr: Learning rate.
        rank: Of an update: an integer, or a fraction of min(m, n); clipped to min(m, n).
        momentum: Decay of the part of the momentum that an update used.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        rank: int | float = 0.25,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, self.options(locals()))

    @classmethod
    def state_shapes(cls, m: int, n: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"momentum": (m, n), "Q": (n, resolve_rank(options["rank"], m, n, above="clip"))}

    def start_state(self, state: dict[str, Tensor], index: int) -> None:
        Q = state["Q"]
        Q.copy_(counter_normal([key_of("dion", index)], tuple(Q.shape), device=Q.device, dtype=Q.dtype)[0])

    def direction(self, G: Tensor, state: dict[str, Tensor], options: Mapping[str, Any], step: int) -> Tensor:
        M, Q = state["momentum"].add_(G), state["Q"]
        P = torch.linalg.qr(M @ Q).Q
        R = M.mT @ P
        M.baddbmm_(P, R.mT, alpha=options["momentum"] - 1.0)
        norms = torch.linalg.vector_norm(R, dim=-2, keepdim=True)
        Q.copy_(torch.where(norms > 0, R / (norms + 1e-8), Q))  # a zero gradient leaves the basis as it is
        return P @ torch.where(norms > 0, Q, 0.0).mT

    @classmethod
    def step_scale(cls, m: int, n: int, options: Mapping[str, Any]) -> float:
        return (m / n) ** 0.5

    @classmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        r = resolve_rank(options["rank"], m, n, above="clip")
        return 8 * m * n * r + 4 * m * r * r + 4 * m * n


register(
    Method(
        name="dion",
        layer="dense",
        optimizer="dion",
        summary="dense weights, orthonormal updates of low rank with error feedback",
        source="Ahn et al. 2025, arXiv 2504.05295",
        defaults={"optimizer.lr": 1e-2, "other.lr": 3e-3},
    ),
    optimizer=Dion,
)
