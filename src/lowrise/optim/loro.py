"""LORO: Adam with Riemannian steps on factored weights; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.balance import rebalance
from lowrise.linalg.fixed_rank import Retraction, tangent_step
from lowrise.linalg.precision import widest
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.options import check_gauge
from lowrise.optim.engine.product_decay import Decay
from lowrise.optim.engine.units import (
    BATCH_ELEMENTS,
    Layout,
    Shape,
    Unit,
    batch_elements,
    chunked,
    units_of,
)
from lowrise.optim.rules.adamw import adam_denominators, adam_moments_, adamw_layout, adamw_update_
from lowrise.optim.rules.loro import (
    adam_step_,
    consistent_direction,
    step_size,
)

KthUpdate = Literal["exact", "rebalance", "lazy"]
ExactDirection = Literal["authors", "consistent"]
Reset = Literal["all", "factors", "other", "none"]

# Elements of temporaries beside one element of a pair in an exact step; keeps its batches small.
EXACT_WORKSPACE = 8


@dataclass(frozen=True)
class Clock:
    """Where one unit stands in its cycle."""

    t: int
    """Updates since its moments were dropped, this one included."""
    kth: bool
    """This update is number K, 2K, ... of the unit."""
    reset: bool
    """Its moments are dropped after this update."""
    lr: float
    """Its learning rate; below the group's while a staggered pair returns from its reset."""


class Member(NamedTuple):
    unit: Unit
    clock: Clock


class LORO(Optimizer):
    """LORO for factored weights, with Adam for all other parameters (Mo, Huang, Pan, "Parameter and Memory
    Efficient Pretraining via Low-rank Riemannian Optimization", ICLR 2025; authors' code: LORO-main at
    4da57b6, loro_torch/loro_optim.py).

    A weight is stored as W = A B^T, A (m x r), B (n x r), and never formed. (The paper's B is our A and its A
    our B.) Per pair, u = number of this step, K = `exact_every`:

    1. Moments and directions D_A, D_B of both factors by Adam, as if they were unrelated
       parameters.
    2. u mod K != 0, the lazy step: A <- A - s c D_A, B <- B - s c D_B, s Adam's step size, c = `lr_scaler`,
       or r / `hidden_size` where that is given (the authors' rule, d being the model's width for every
       matrix); then A <- (1 - s wd) A, B likewise.
    3. u mod K = 0, the exact step: W moves along the tangent space of the rank-r matrices and comes back to
       rank r, W <- svd_r(W - s xi), and A, B are balanced, A^T A = B^T B (`linalg/fixed_rank.py`). No c, no
       decay.
    4. After step u with u mod `reset_every` = 0 (0: K), the moments of the groups named by `reset` are
       dropped, and t of the bias corrections starts again. `schedule.restart_warmup` lowers the learning rate
       after it (`resets`).

    Everything else (role "other") takes Adam's step 1 with the unscaled lr, then p <- (1 - lr wd) p.

    The direction of the exact step. "authors" gives Adam's D_A, D_B to it, as all published runs do. Divided
    entry by entry, they are not derivatives by the two factors of any one function: the two versions of the
    core U^T G V differ by as much as their norm (the code takes the one of D_B), the step is not steepest
    descent, and it depends on the split into A and B. "consistent" divides the first moments of a pair by one
    number, takes the mean of the cores, and gives the tangent vector the length that Adam would give it
    (`consistent_direction`): for one gradient it is the steepest descent of all unit tangent directions,
    whatever the split.

    Moments and the basis. An exact step, and a rebalancing, replace the columns of A and B by others with
    arbitrary signs; moments of the old columns mean nothing there. So one of these with K > 0 is refused
    unless the factors' moments are dropped at the same step, or `transport` carries them over: with the
    change of basis T_A = A^+ A', T_B = B^+ B', G B becomes G B T_B, so m_A <- m_A T_B, m_B <- m_B T_A, and v
    by the squared entries of T, as a variance of uncorrelated entries. For signs and permutations that is
    exact, for rebalancing it is exact for m.

    Each ingredient can be had alone: `kth_update` "exact", "rebalance" (lazy step, then balanced factors) or
    "lazy"; `reset` "none"; no `schedule.restart_warmup`; `schedule.cycle` for restarts without resets.

    State per parameter: `exp_avg`, `exp_avg_sq` of its shape in float32, and `step`. Roles: "factors",
    "other". FLOPs per step: 15 per element; an exact step has 10 (m + n) r^2 + 90 r^3 more, a rebalancing
    6 (m + n) r^2 + 30 r^3, each counted here as 1 / K of that.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate of exact steps and of other parameters; lazy steps have c times it. Defaults are
            those of the published runs (scripts/loro_c4).
        betas: Decay rates b1, b2 of the two moments.
        eps: Added to the root of the second moment before its bias correction, as in the authors' code (torch
            adds it after).
        weight_decay: Decoupled weight decay wd, after the step; an exact step has none.
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by
            entries, and products before the step.
        exact_every: Steps K between two exact steps; 500 as published (200 at 1B), 0: never.
        kth_update: What happens at steps K, 2K, .... exact: the Riemannian step; rebalance: a lazy step, then
            balanced factors; lazy: nothing else.
        exact_direction: Direction of the exact step. authors: as published; consistent: independent of the
            split into A and B.
        retraction: Way back to rank r. svd: the nearest such matrix; orthographic: needs no iteration.
        reset: Whose moments are dropped every `reset_every` steps. all, factors, other or none.
        reset_every: Steps between two resets; 0: K.
        transport: Carry the factors' moments over into the new basis where they are not dropped.
        lr_scaler: Factor c of lazy steps; 0.25 is r / d of the published runs.
        hidden_size: The model's width d, to have c = r / d per pair; 0: c is `lr_scaler`.
        stagger: Spread the exact steps of the pairs evenly over the K steps; resets and the return of the
            learning rate then come with each pair's own exact step.
        restart_warmup: Steps over which the learning rate of a staggered pair returns after its reset;
            without stagger, `schedule.restart_warmup` does this.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"factors", "other"})
    by_rows: ClassVar[frozenset[str]] = frozenset({"other"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        decay: Decay = "entries",
        exact_every: int = 500,
        kth_update: KthUpdate = "exact",
        exact_direction: ExactDirection = "authors",
        retraction: Retraction = "svd",
        reset: Reset = "all",
        reset_every: int = 0,
        transport: bool = False,
        lr_scaler: float = 0.25,
        hidden_size: int = 0,
        stagger: bool = False,
        restart_warmup: int = 5,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for key in ("exact_every", "reset_every", "hidden_size", "restart_warmup"):
            if group[key] < 0:
                raise UsageError(f"LORO has {key} = {group[key]}; it must be at least 0.")
        if not 0.0 <= group["lr_scaler"] < math.inf:
            raise UsageError(
                f"LORO has lr_scaler = {group['lr_scaler']}; give a number of 0 or more, or "
                "hidden_size for the authors' rule r / hidden_size."
            )
        if group["exact_every"] and group["kth_update"] != "lazy" and group["role"] == "factors":
            option = f"kth_update = {group['kth_update']!r} every {group['exact_every']} updates"
            check_gauge(group, option, who="LORO", remedy='set kth_update = "lazy"')
            _check_basis(group)
            for A, B in zip(group["params"][::2], group["params"][1::2], strict=True):
                if A.shape[1] > min(A.shape[0], B.shape[0]):
                    raise UsageError(
                        f"LORO's exact step needs a rank of at most min(rows, columns), not {A.shape[1]} for "
                        f"factors {tuple(A.shape)} and {tuple(B.shape)}; lower the rank or set "
                        "kth_update = 'lazy'."
                    )

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return adamw_layout(shapes)

    def resets(self, total_steps: int, skipped: int = 0) -> tuple[int, ...]:
        """Updates after which moments are dropped for all parameters of a role at once, `skipped` later than
        by the count of own steps; staggered pairs are not among them, they return to their learning rate by
        themselves.
        """
        steps: set[int] = set()
        for group in self.param_groups:
            together = group["role"] in self.roles and not (group["stagger"] and group["role"] == "factors")
            if together and _reset_period(group):
                steps.update(range(_reset_period(group), total_steps - skipped, _reset_period(group)))
        return tuple(sorted(step + skipped for step in steps))

    def rewritten(self) -> list[Tensor]:
        """Pairs whose K-th update this was."""
        found: list[Tensor] = []
        for group in self.param_groups:
            if group["role"] == "factors" and group["exact_every"] and group["kth_update"] != "lazy":
                units = [Unit(u, (), tuple(self.state[p] for p in u)) for u in units_of(group)]
                clocks = _clocks(group, units)
                found += [p for u, clock in zip(units, clocks, strict=True) if clock.kth for p in u.params]
        return found

    def _decaying(self, group: Mapping[str, Any], units: list[Unit]) -> list[Unit]:
        if group["kth_update"] != "exact":
            return units
        return [unit for unit, clock in zip(units, _clocks(group, units), strict=True) if not clock.kth]

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        members = [Member(unit, clock) for unit, clock in zip(units, _clocks(group, units), strict=True)]
        kth = [member for member in members if member.clock.kth]
        exact = kth if group["kth_update"] == "exact" else []
        lazy = [member for member in members if not member.clock.kth] if exact else members
        if group["weight_decay"] == 0.0:
            _fused_lazy_steps(group, lazy)
            lazy = []
        _moments(group, lazy + exact)
        _lazy_steps(group, lazy + _exact_steps(group, exact))
        if group["kth_update"] == "rebalance":
            _rebalance(group, kth)
        dropped = [s for member in members if member.clock.reset for s in member.unit.states]
        if dropped:
            torch._foreach_zero_([s[key] for s in dropped for key in ("exp_avg", "exp_avg_sq")])

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        total = 15.0 * sum(math.prod(shape) for shape in shapes)
        if role == "factors" and options["exact_every"]:
            (m, r), (n, _) = shapes
            kth = {"exact": (10, 90), "rebalance": (6, 30), "lazy": (0, 0)}[options["kth_update"]]
            total += (kth[0] * (m + n) * r * r + kth[1] * r**3) / options["exact_every"]
        return round(total)


def _reset_period(group: Mapping[str, Any]) -> int:
    """Updates between two drops of this group's moments; 0: never."""
    mine = "factors" if group["role"] == "factors" else "other"
    return (group["reset_every"] or group["exact_every"]) if group["reset"] in ("all", mine) else 0


def _check_basis(group: Mapping[str, Any]) -> None:
    """Moments of old columns must not be applied to new ones."""
    period = _reset_period(group)
    if group["transport"] or (period and group["exact_every"] % period == 0):
        return
    raise UsageError(
        f"LORO has kth_update = {group['kth_update']!r} every {group['exact_every']} updates with "
        f"reset = {group['reset']!r} and reset_every = {group['reset_every']}: moments of the old columns "
        "of the factors would be applied to new ones with arbitrary signs. Drop the factors' moments at the "
        "same updates (reset = 'all' or 'factors', reset_every = 0), or carry them over (transport = true)."
    )


def _clocks(group: Mapping[str, Any], units: Sequence[Unit]) -> list[Clock]:
    """The counters `step` are on the CPU: nothing waits for the device."""
    factors, params = group["role"] == "factors", group["params"]
    every, period = group["exact_every"] if factors else 0, _reset_period(group)
    phases: dict[int, int] = {}
    if factors and group["stagger"]:
        pairs = len(params) // 2
        phases = {id(A): i * every // pairs for i, A in enumerate(params[::2])}
    clocks = []
    for unit in units:
        step = unit.step
        number = step + phases.get(id(unit.params[0]), 0)
        t = min(step, (number - 1) % period + 1) if period else step
        back = t < step and bool(phases) and t <= group["restart_warmup"]
        clocks.append(
            Clock(
                t=t,
                kth=every > 0 and number % every == 0,
                reset=period > 0 and number % period == 0,
                lr=group["lr"] * ((t - 1) / group["restart_warmup"] if back else 1.0),
            )
        )
    return clocks


def _moments(group: Mapping[str, Any], members: Sequence[Member]) -> None:
    """The moments of step 1."""
    if members:
        states = [s for member in members for s in member.unit.states]
        grads = [g for member in members for g in member.unit.grads]
        m, v = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
        adam_moments_(m, v, grads, tuple(group["betas"]))


def _fused_lazy_steps(group: Mapping[str, Any], members: Sequence[Member]) -> None:
    """Steps 1 and 2 at once where there is no decay, which torch's kernel has in another place."""
    rates: dict[float, list[tuple[Tensor, Tensor, dict[str, Tensor], int]]] = {}
    for unit, clock in members:
        for param, grad, state in zip(unit.params, unit.grads, unit.states, strict=True):
            scale = _lazy_scale(group, param.shape[1]) if group["role"] == "factors" else 1.0
            rates.setdefault(scale * clock.lr, []).append((param, grad, state, clock.t))
    for lr, same in rates.items():
        for chunk in chunked(same, lambda member: member[0].numel(), BATCH_ELEMENTS):
            params, grads, states, ts = map(list, zip(*chunk, strict=True))
            adamw_update_(
                params,
                grads,
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                ts,
                lr=lr,
                betas=tuple(group["betas"]),
                eps=group["eps"],
                weight_decay=0.0,
                form="hf",
            )


def _lazy_steps(group: Mapping[str, Any], members: Sequence[Member]) -> None:
    """Step 2 for factors, Adam's for the rest, a bounded number of elements at a time."""
    betas, factors = tuple(group["betas"]), group["role"] == "factors"
    for chunk in chunked(members, lambda member: member.unit.elements, BATCH_ELEMENTS):
        flat = [
            (param, state, member.clock)
            for member in chunk
            for param, state in zip(member.unit.params, member.unit.states, strict=True)
        ]
        params, states, clocks = zip(*flat, strict=True)
        sizes = [step_size(clock.lr, clock.t, betas) for clock in clocks]
        decays = [
            (s if factors else c.lr) * group["weight_decay"] for s, c in zip(sizes, clocks, strict=True)
        ]
        denominators = adam_denominators([s["exp_avg_sq"] for s in states], group["eps"])
        if factors:
            sizes = [size * _lazy_scale(group, p.shape[1]) for size, p in zip(sizes, params, strict=True)]
        moments = [s["exp_avg"] for s in states]
        adam_step_(list(params), moments, denominators, sizes, decays if group["weight_decay"] else None)


def _lazy_scale(group: Mapping[str, Any], rank: int) -> float:
    return rank / group["hidden_size"] if group["hidden_size"] else group["lr_scaler"]


def _exact_steps(group: Mapping[str, Any], members: Sequence[Member]) -> list[Member]:
    """Step 3; returns the pairs that it cannot move (factors without full rank), which take the lazy step."""
    betas = tuple(group["betas"])
    stayed: list[Member] = []
    for bucket in _alike(members):
        t = bucket[0].clock.t
        A, B = _stacked(bucket)
        m_A, m_B = (torch.stack([m.unit.states[i]["exp_avg"] for m in bucket]) for i in (0, 1))
        v_A, v_B = (torch.stack([m.unit.states[i]["exp_avg_sq"] for m in bucket]) for i in (0, 1))
        if group["exact_direction"] == "consistent":
            D_A, D_B, length = consistent_direction(m_A, m_B, v_A, v_B, t, betas, group["eps"])
            step = A.new_tensor([m.clock.lr for m in bucket])
            moved = tangent_step(
                A, B, D_A, D_B, step, core="mean", retraction=group["retraction"], length=length
            )
        else:
            v_A, v_B = adam_denominators([v_A, v_B], group["eps"])
            step = A.new_tensor([step_size(m.clock.lr, t, betas) for m in bucket])
            moved = tangent_step(A, B, m_A / v_A, m_B / v_B, step, retraction=group["retraction"])
        _write(group, bucket, moved.A, moved.B, moved.T_A, moved.T_B)
        stayed += [m for m, ok in zip(bucket, moved.ok.tolist(), strict=True) if not ok]
    return stayed


def _rebalance(group: Mapping[str, Any], members: Sequence[Member]) -> None:
    """The balanced gauge of every pair, computed in float64; W does not change."""
    for bucket in _alike(members):
        A, B = _stacked(bucket)
        wide = widest(A.device)
        new_A, new_B, T = rebalance(A.to(wide), B.to(wide))
        _write(group, bucket, new_A, new_B, T, torch.linalg.inv_ex(T).inverse.mT)


def _write(
    group: Mapping[str, Any], members: Sequence[Member], A: Tensor, B: Tensor, T_A: Tensor, T_B: Tensor
) -> None:
    """Store new factors and, if asked for, carry the moments into their basis; moments that would not be
    finite there are dropped.
    """
    for i, member in enumerate(members):
        for place, (new, T) in enumerate(((A[i], T_B[i]), (B[i], T_A[i]))):
            member.unit.params[place].copy_(new)
            if group["transport"]:
                state = member.unit.states[place]
                T = T.to(state["exp_avg"].dtype)
                moments = state["exp_avg"] @ T, state["exp_avg_sq"] @ T.square()
                sound = torch.stack([x.isfinite().all() for x in moments]).all()
                for key, x in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                    state[key].copy_(torch.where(sound, x, 0.0))


def _alike(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Pairs that may be stacked, a bounded number at a time."""
    kinds: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        A, B = member.unit.params
        dtype = member.unit.states[0]["exp_avg"].dtype
        kinds.setdefault((A.shape, B.shape, dtype, A.device, member.clock.t), []).append(member)
    for (*_, device, _), same in kinds.items():
        yield from chunked(
            same, lambda member: EXACT_WORKSPACE * member.unit.elements, batch_elements(device)
        )


def _stacked(members: Sequence[Member]) -> tuple[Tensor, Tensor]:
    """A (b, m, r) and B (b, n, r) in the dtype of the moments."""
    dtype = members[0].unit.states[0]["exp_avg"].dtype
    A, B = (torch.stack([m.unit.params[i] for m in members]).to(dtype) for i in (0, 1))
    return A, B
