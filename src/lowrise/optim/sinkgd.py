"""SinkGD: SGD with rows and columns normalized in turn; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from lowrise.errors import UsageError
from lowrise.linalg.sinkhorn import sinkhorn_vectors
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import BALL_ROLES, step_
from lowrise.optim.engine.units import Layout, Shape, Unit, buckets, stacked


class SinkGD(Optimizer):
    """SinkGD: SGD with the gradient's rows and columns scaled to RMS 1 (Scetbon et al. 2025, arXiv
    2502.06742, NeurIPS 2025, Algorithms 3 and 4).

    Per matrix W (m x n) with gradient G (m x n), learning rate lr:

    1. r (m), c (n) <- `iters` square-root Sinkhorn iterations on G o G      (`linalg/sinkhorn.py`)
    2. X = Diag(r) G Diag(c): columns of norm sqrt(m), rows nearly of norm sqrt(n), ||X||_F = sqrt(m n)
    3. W <- W (1 - lr wd)                                                    (ours; the paper has no decay)
    4. W <- W - lr X                                                         an update of RMS lr

    No authors' code is public; steps 1 and 2 are what five re-implementations agree on, in vector form: G is
    read for its squares and once at the end. Others guard denominators by 1e-8; we take rows and columns
    below 1e-12 of G's largest entry for zero, so the update does not depend on the scale of G.

    Not for embeddings: where most rows of G are zero, the others are blown up to refill the columns.

    State: none besides `step`. Role: "matrix"; all other parameters by built-in AdamW.
    FLOPs per step: 4 iters m n + 7 m n.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate of the matrices, the RMS of an update; 1e-3 as the sources multiply it out (0.02 x
            0.05). Packages that leave out sqrt(m) and sqrt(n) have updates of RMS 1/sqrt(m): their rates do
            not compare.
        iters: Normalizations of rows and columns; 5 as published, 1 is said to lose little.
        rows_first: Normalize the rows first; then the columns are exact at the end, else the rows.
        weight_decay: Decoupled weight decay wd; 0 as published.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix"})
    ball_roles: ClassVar[frozenset[str]] = BALL_ROLES

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        iters: int = 5,
        rows_first: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "iters": iters, "rows_first": rows_first, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        if group["iters"] < 1:
            raise UsageError(f"SinkGD has iters = {group['iters']}; at least 1 is needed (5 as published).")

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return tuple({} for _ in shapes)

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        decay = 1.0 - group["lr"] * group["weight_decay"] if group["weight_decay"] else None
        for bucket in buckets(units, lambda unit: unit.params[0]):
            G = stacked([unit.grads[0] for unit in bucket])  # (batch, m, n)
            r, c = sinkhorn_vectors(G, iters=group["iters"], rows_first=group["rows_first"])
            X = (G * (group["lr"] * r).unsqueeze(-1)).mul_(c.unsqueeze(-2))
            params, states = [unit.params[0] for unit in bucket], [unit.states[0] for unit in bucket]
            step_(group, params, X.unbind(), states, decay)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        (m, n), *_ = shapes
        # Squares of G / max|G|: 3. Two products with S an iteration: 4. Two scalings, decay, subtraction: 4.
        return (4 * options["iters"] + 7) * m * n
