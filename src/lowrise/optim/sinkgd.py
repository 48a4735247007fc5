"""SinkGD: SGD with rows and columns normalized in turn; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.passes import Passes
from lowrise.linalg.precision import full_precision_matmul
from lowrise.linalg.sinkhorn import GUARD, sinkhorn_vectors_each
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import BALL_ROLES, step_
from lowrise.optim.engine.natively import divided
from lowrise.optim.engine.units import Layout, Shape, Unit, stacked, together
from lowrise.rng import counter_normal, key_of

Target = Literal["none", "unit", "muon"]


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

    With a spectral target tau (axolotl, pull requests 3763 and 3785): 1 for `target` "unit", sqrt(m/n) for
    "muon". A unit vector u (n), random at first, follows the leading right singular vector of X:

    2a. `power_iters` times: v = X u, v <- v / ||v||; u = X^T v, sigma = ||u||, u <- u / sigma
    4a. W <- W - lr (tau / sigma) X                              an update of spectral norm lr tau, or more

    sigma is at most ||X||_2, so the update's norm is at least lr tau, and lr tau once u has converged; ours:
    `power_iters_first` iterations in the first step. The scale of rows and columns is folded into u, v and
    the rate: G is read twice more an iteration, and X is written once, as without a target.

    State: none besides `step`; with a target `u` (n). Role: "matrix"; all other parameters by built-in
    AdamW. FLOPs per step: 4 iters m n + 7 m n, with a target 4 power_iters m n more.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate of the matrices, the RMS of an update; 1e-3 as the sources multiply it out (0.02 x
            0.05). Packages that leave out sqrt(m) and sqrt(n) have updates of RMS 1/sqrt(m): their rates do
            not compare.
        iters: Normalizations of rows and columns; 5 as published, 1 is said to lose little.
        rows_first: Normalize the rows first; then the columns are exact at the end, else the rows.
        target: Spectral norm that an update is brought to, in units of lr. none: an update of RMS lr, as
            published; unit: 1; muon: sqrt(m/n), which makes lr independent of the width.
        power_iters: Power iterations per step for the spectral norm; 1 in axolotl, warm-started.
        power_iters_first: The same in the first step, from a random vector; ours: 10.
        weight_decay: Decoupled weight decay wd; 0 as published.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix"})
    ball_roles: ClassVar[frozenset[str]] = BALL_ROLES
    native_passes: ClassVar[bool] = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        iters: int = 5,
        rows_first: bool = True,
        target: Target = "none",
        power_iters: int = 1,
        power_iters_first: int = 10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        if group["iters"] < 1:
            raise UsageError(f"SinkGD has iters = {group['iters']}; at least 1 is needed (5 as published).")
        for key in ("power_iters", "power_iters_first"):
            if group[key] < 1:
                raise UsageError(f"SinkGD has {key} = {group[key]}; at least 1 is needed.")

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return tuple({"u": (shape[1],)} if options["target"] != "none" else {} for shape in shapes)

    def _start_state(
        self, group: dict[str, Any], param: Tensor, index: int, state: dict[str, Tensor]
    ) -> None:
        u = state["u"]
        u.copy_(counter_normal([key_of("sinkgd", index)], tuple(u.shape), device=u.device, dtype=u.dtype)[0])
        u.div_(torch.linalg.vector_norm(u))

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        decay = 1.0 - group["lr"] * group["weight_decay"] if group["weight_decay"] else None
        by_iters: dict[int, list[Unit]] = {}
        for unit in units:
            by_iters.setdefault(_power_iters(group, unit), []).append(unit)
        for power_iters, same in by_iters.items():
            passes, native, rest = divided(group, same)
            if passes is not None and native:
                _update_natively(passes, group, native, power_iters)
            for chunk in together(rest, lambda unit: unit.params[0]):
                updates = [u for X in _updates(group, chunk, power_iters) for u in X.unbind()]
                members = [unit for bucket in chunk for unit in bucket]
                params, states = [unit.params[0] for unit in members], [unit.states[0] for unit in members]
                step_(group, params, updates, states, decay)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        (m, n), *_ = shapes
        # Squares of G / max|G|: 3. Two products with S an iteration: 4. Two scalings, decay, subtraction: 4.
        power = options["power_iters"] if options["target"] != "none" else 0
        return (4 * options["iters"] + 4 * power + 7) * m * n


def _power_iters(group: Mapping[str, Any], unit: Unit) -> int:
    """Power iterations of this update; none without a target."""
    if group["target"] == "none":
        return 0
    first = unit.step == 1
    return int(group["power_iters_first" if first else "power_iters"])


def _updates(group: Mapping[str, Any], chunk: Sequence[Sequence[Unit]], power_iters: int) -> Iterator[Tensor]:
    """lr X (batch, m, n), with a target times tau / sigma, for matrices of several shapes, those of one shape
    in a list.
    """
    stacks = [stacked([unit.grads[0] for unit in bucket]) for bucket in chunk]  # (batch, m, n)
    vectors = sinkhorn_vectors_each(stacks, iters=group["iters"], rows_first=group["rows_first"])
    rows = [r for r, _ in vectors]
    if power_iters:
        us = [[unit.states[0]["u"] for unit in bucket] for bucket in chunk]
        rows = [
            _to_target(group["target"], G, r, c, u, power_iters)
            for G, (r, c), u in zip(stacks, vectors, us, strict=True)
        ]
    torch._foreach_mul_(rows, group["lr"])  # after the target: sigma is of r and c as they were
    for G, r, (_, c) in zip(stacks, rows, vectors, strict=True):
        yield (G * r.unsqueeze(-1)).mul_(c.unsqueeze(-2))


def _update_natively(passes: Passes, group: Mapping[str, Any], units: list[Unit], power_iters: int) -> None:
    """Steps 1 to 4 in C++, but for the target's power iterations, which are products."""
    grads = [unit.grads[0] for unit in units]
    rows, columns = passes.sinkhorn(grads, iters=group["iters"], rows_first=group["rows_first"], guard=GUARD)
    if power_iters:
        rows = [
            _to_target(group["target"], G[None], r[None], c[None], [unit.states[0]["u"]], power_iters)[0]
            for unit, G, r, c in zip(units, grads, rows, columns, strict=True)
        ]
    torch._foreach_mul_(rows, group["lr"])  # after the target: sigma is of r and c as they were
    params = [unit.params[0] for unit in units]
    passes.scaled_update(params, grads, rows, columns, 1.0 - group["lr"] * group["weight_decay"])


def _to_target(target: str, G: Tensor, r: Tensor, c: Tensor, us: list[Tensor], power_iters: int) -> Tensor:
    """r (batch, m) times tau / sigma, step 4a; each u of `us` is written. Zero where sigma is."""
    m, n = G.shape[-2:]
    tau = math.sqrt(m / n) if target == "muon" else 1.0
    sigma, u = leading_singular(G, r, c, stacked(us), iters=power_iters)
    torch._foreach_copy_(us, list(u.unbind()))
    scaled = r * torch.where(sigma > 0, tau / sigma, 0.0).unsqueeze(-1)
    return scaled.clamp_(max=torch.finfo(r.dtype).max)  # where G is subnormal, r is that already


def leading_singular(G: Tensor, r: Tensor, c: Tensor, u: Tensor, *, iters: int) -> tuple[Tensor, Tensor]:
    """Step 2a for X = Diag(r) G Diag(c), which is not formed: sigma (batch,) <= ||X||_2, and u (batch, n).

    G (batch, m, n), r (batch, m), c (batch, n), u (batch, n) of norm 1. Where X u = 0, sigma is 0 and u is
    returned as it came, so that it can follow later gradients.
    """
    # As rows from the left, as in `linalg/sinkhorn.py`.
    r, c, u = r.unsqueeze(-2), c.unsqueeze(-2), u.unsqueeze(-2)
    with full_precision_matmul(G.device):
        for _ in range(iters):
            v, _ = _unit(((u * c) @ G.mT) * r, torch.zeros_like(r))  # (batch, 1, m)
            u, sigma = _unit(((v * r) @ G) * c, u)  # (batch, 1, n), (batch, 1, 1)
    return sigma.flatten(), u.squeeze(-2)


def _unit(x: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """x (batch, 1, k) / ||x||, and the norms (batch, 1, 1); `otherwise` where that is zero."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm, otherwise), norm
