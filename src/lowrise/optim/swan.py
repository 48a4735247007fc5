"""SWAN: SGD with the gradient normalized and whitened; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.norms import frobenius
from lowrise.linalg.polar import polar_svd
from lowrise.linalg.whitening import (
    COUPLED_BETA,
    COUPLED_STEPS,
    DIAGONAL_BETA,
    DIAGONAL_STEPS,
    standardize,
    whiten_diagonal,
    whiten_each,
)
from lowrise.optim.engine.matrix import Matrices, MatrixOptimizer
from lowrise.optim.engine.units import stacked

Whitening = Literal["ns", "nsds", "exact"]

# Method -> steps and beta where they are left to it.
ITERATION: dict[str, tuple[int, float]] = {
    "ns": (COUPLED_STEPS, COUPLED_BETA),
    "nsds": (DIAGONAL_STEPS, DIAGONAL_BETA),
}


class SWAN(MatrixOptimizer):
    """SWAN: SGD with the gradient normalized and whitened (Ma et al. 2024, arXiv 2412.13148, ICML 2025).

    Per matrix W (m x n, out x in) with gradient G (m x n), learning rate lr, p = min(m, n), q = max(m, n):

    1. N = (G - mean) / std, per row or column along `axis`; without `center`, G / RMS     ||N||_F = sqrt(m n)
    2. O = (N N^T)^(-1/2) N, on the smaller side, by `method`:
       "ns": coupled Newton-Schulz, `steps` times with `beta` (`linalg/whitening.py`);
       "nsds": the same with diagonals, no p x p product in the loop, experimental;
       "exact": by SVD, with a host-device synchronization
    3. D = O ||N||_F / ||O||_F, if `rescale`                                               RMS 1
    4. W <- W (1 - lr wd)                                                                  (not in the paper)
    5. W <- W - lr D

    It is Muon without momentum, behind a row normalization. No authors' code is public and the texts leave
    points open. We take: rows, one output over its inputs (three of four re-implementations); centered, as in
    the first versions of the paper; simultaneous Newton-Schulz with beta = 0.8, ten steps, from S /
    ||N||_F^2; NSDS beta = 0.4, two steps, from trace p.

    Steps 1 to 3 are done in float32 (float64 for float64 weights) without TF32 whatever the dtype of weights
    and autocast: in bfloat16 the coupled iteration explodes. The map for beta = 0.8 does not converge, and
    enlarges rounding: bits differ between devices. Rows that are zero (or constant, if centered) stay zero.

    State: none besides `step`. Role: "matrix"; all other parameters by built-in AdamW.
    FLOPs per step: 15 m n, and "ns" 4 p^2 q + 6 (steps - 1) p^3, "nsds" 4 p^2 q + 8 steps p^2, "exact"
    6 p^2 q + 8 p^3 (an estimate for LAPACK).

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate of the matrices, the RMS of an update; 1e-3 as the sources multiply it out (0.02 x
            0.05).
        axis: What is standardized, of a weight stored out x in. 1: rows; 0: columns.
        center: Subtract the mean of each row (or column) before dividing by its deviation.
        method: How step 2 is computed. ns: coupled Newton-Schulz; nsds: with diagonals, experimental; exact:
            by SVD, slow.
        steps: Newton-Schulz steps; none: 10 for ns, 2 for nsds.
        beta: Newton-Schulz step size; none: 0.8 for ns, 0.4 for nsds. 0.5 converges to the exact result.
        rescale: Give every update RMS lr; used in practice.
        weight_decay: Decoupled weight decay wd; 0 as published.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        axis: int = 1,
        center: bool = True,
        method: Whitening = "ns",
        steps: int | None = None,
        beta: float | None = None,
        rescale: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        if group["axis"] not in (0, 1):
            raise UsageError(f"SWAN has axis = {group['axis']}; choose 1 (rows) or 0 (columns).")
        if group["steps"] is not None and group["steps"] < 1:
            raise UsageError(f"SWAN has steps = {group['steps']}; at least 1 is needed (10 for 'ns').")
        if group["beta"] is not None and not 0.0 < group["beta"] < 1.0:
            raise UsageError(
                f"SWAN has beta = {group['beta']}; it must be above 0 and below 1 (0.8 for 'ns')."
            )

    def directions(
        self, batches: Sequence[Matrices], options: Mapping[str, Any], step: int
    ) -> Iterator[Tensor]:
        """Steps 1 to 3; a zero gradient gives zero."""
        dim, center = options["axis"] - 2, options["center"]
        Ns = [standardize(stacked(batch.grads), dim=dim, center=center) for batch in batches]
        Ds = _whitened(Ns, options)
        if options["rescale"]:
            norms_N, norms_D = frobenius(Ns), frobenius(Ds)
            factors = norms_N / norms_D.masked_fill(norms_D == 0, 1.0)
            rates = factors.split([len(N) for N in Ns])
            # Written into N, whose layout is that of the weights.
            Ds = [torch.mul(D, rate, out=N) for D, N, rate in zip(Ds, Ns, rates, strict=True)]
        for D in Ds:
            yield from D.contiguous().unbind()

    @classmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        p, q = min(m, n), max(m, n)
        steps, _ = iteration_of(options["method"], options["steps"], options["beta"])
        loop = {"ns": 6 * (steps - 1) * p**3, "nsds": 8 * steps * p * p, "exact": 8 * p**3 + 2 * p * p * q}
        return 4 * p * p * q + loop[options["method"]] + 15 * m * n


def _whitened(Ns: Sequence[Tensor], options: Mapping[str, Any]) -> list[Tensor]:
    """Step 2 for stacks (batch, m, n)."""
    method = options["method"]
    steps, beta = iteration_of(method, options["steps"], options["beta"])
    if method == "ns":
        return whiten_each(Ns, steps=steps, beta=beta)
    if method == "nsds":
        return [whiten_diagonal(N, steps=steps, beta=beta) for N in Ns]
    return [polar_svd(N) for N in Ns]


def iteration_of(method: str, steps: int | None, beta: float | None) -> tuple[int, float]:
    """Steps and beta, the method's own where they are None; "exact" has none."""
    own_steps, own_beta = ITERATION.get(method, (0, 0.0))
    return own_steps if steps is None else steps, own_beta if beta is None else beta
