"""Adam in a subspace of the gradient: the part that GaLore, Fira and APOLLO share.

Per matrix W (m x n) with gradient G, t = number of this update from 1, basis P on one side (`projection.py`;
written here for "left", P m x r):

1. renew P if it is due
2. R = P^T G                                            (r x n)
3. M <- b1 M + (1 - b1) R;  V <- b2 V + (1 - b2) R R    (moments are kept when P is renewed)
4. N = M / (sqrt(V) + eps)                              (eps on the uncorrected root)
5. U = the method's direction from G, R, N, P           (m x n)
6. W <- (W - s U)(1 - lr wd),  s = lr sqrt(1 - b2^t) / (1 - b1^t)   (s = lr without `correct_bias`)

Parameters of other roles: the same with R = G, U = N, that is AdamW in the form "hf" (`rules/adamw.py`).

State per matrix, r = rank clipped to min(m, n), one side: the basis `left` or `right` (r times the projected
dimension), `exp_avg` and `exp_avg_sq` (2 r times the other), what the method adds, and `step`. With
proj_type "full": both bases and 2 r^2.

Where we differ from the authors' code: bases are plain tensors of their own (not views of a whole U, not
pickled objects), complete from construction, float32 for bfloat16 weights; signs are aligned; options of a
group may be changed at any time (except rank and proj_type, which shape the state).
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.norms import line_norms
from lowrise.linalg.rank import check_rank_value, resolve_rank
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import BALL_ROLES, step_
from lowrise.optim.engine.units import Layout, Shape, Unit, stacked, together
from lowrise.optim.rules.adamw import Form, adam_denominators, adam_moments_
from lowrise.optim.rules.growth_limiter import firsts, limit_growth
from lowrise.optim.rules.projection import (
    PROJECTIONS,
    keys_of,
    last_renewal,
    normal_basis,
    offsets_of,
    project,
    renewed,
    sides_of,
)


@dataclass
class Batch:
    """Matrices of one shape, stacked, with what the steps 1, 2 and 4 give."""

    members: Sequence[Member]
    G: Tensor
    """(batch, m, n); may be the gradient itself, so it is not written."""
    bases: dict[str, Tensor]
    R: Tensor
    N: Tensor


@dataclass(frozen=True)
class Member:
    """A matrix of the group with what its basis depends on."""

    unit: Unit
    key: str
    step: int
    """0-based number of this update."""
    renewal: int
    """0-based number of the update that this basis is from."""

    @property
    def state(self) -> dict[str, Tensor]:
        return self.unit.states[0]


class ProjectedAdam(Optimizer):
    """Steps 1 to 6 of the module's docstring; a subclass gives step 5 and what it keeps for it."""

    roles: ClassVar[frozenset[str]] = frozenset({"matrix"})
    ball_roles: ClassVar[frozenset[str]] = BALL_ROLES
    adamw_form: ClassVar[Form] = "hf"
    alias: ClassVar[tuple[str, str]] = ("alpha", "scale")
    """Another name that groups may use for an option, and the option's own."""

    @abstractmethod
    def _directions(self, group: dict[str, Any], batches: Sequence[Batch], rate: float) -> Iterable[Tensor]:
        """Step 5 times `rate`, (batch, m, n) for each batch in turn, a new tensor. All are at one update."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the base; a group may use the other name of the scale (`alpha` for `scale`, or the reverse)."""
        other, own = self.alias
        group = dict(param_group)
        if other in group:
            group[own] = group.pop(other)
        super().add_param_group(group)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        who = type(self).__name__
        gap = group["update_proj_gap"]
        check_rank_value(group["rank"], where=who)
        if gap < 1 or gap != int(gap):
            raise UsageError(f"{who} has update_proj_gap = {gap}; it must be an integer of at least 1.")
        if not callable(group["projection"]) and group["projection"] not in PROJECTIONS:
            raise UsageError(
                f"{who} has projection = {group['projection']!r}; choose one of {', '.join(PROJECTIONS)}, "
                "or give a callable (G, rank, side, step) -> basis."
            )

    # ---- state

    @classmethod
    def _rank(cls, shape: Shape, options: Mapping[str, Any]) -> int:
        return resolve_rank(options["rank"], *shape, above="clip")

    @classmethod
    def _stores_basis(cls, options: Mapping[str, Any]) -> bool:
        return True

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        (m, n), r = shapes[0], cls._rank(shapes[0], options)
        sides = sides_of(options["proj_type"], (m, n))
        layout: Layout = {}
        if cls._stores_basis(options):
            layout |= {side: (m if side == "left" else n, r) for side in sides}
        moments = (r if "left" in sides else m, r if "right" in sides else n)
        return ({**layout, "exp_avg": moments, "exp_avg_sq": moments},)

    def _start_state(
        self, group: dict[str, Any], param: Tensor, index: int, state: dict[str, Tensor]
    ) -> None:
        for side in {"left", "right"} & state.keys():
            torch.nn.init.eye_(state[side])

    # ---- the step

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        keep = 1.0 - group["lr"] * group["weight_decay"]
        by_step: dict[int, list[Member]] = {}
        for member in self._members(group, units):
            by_step.setdefault(member.step, []).append(member)
        for step, same in by_step.items():
            rate = keep * self._step_size(group, step)
            for chunk in together(same, lambda member: member.unit.params[0]):
                batches = self._projected(group, chunk)
                self._move_weights(group, batches, rate, keep)

    def _move_weights(
        self, group: dict[str, Any], batches: Sequence[Batch], rate: float, keep: float
    ) -> None:
        """Steps 5 and 6."""
        updates = [u for U in self._directions(group, batches, rate) for u in U.unbind()]
        members = [member for batch in batches for member in batch.members]
        params = [member.unit.params[0] for member in members]
        states = [member.state for member in members]
        step_(group, params, updates, states, keep if group["weight_decay"] else None)

    def _projected(self, group: dict[str, Any], chunk: Sequence[Sequence[Member]]) -> list[Batch]:
        """Steps 1 to 4: products for each shape, the rest for all together."""
        stacks = [stacked([member.unit.grads[0] for member in bucket]) for bucket in chunk]  # (batch, m, n)
        bases = self._all_bases(group, chunk, stacks)
        projections = [project(G, own) for G, own in zip(stacks, bases, strict=True)]
        members = [member for bucket in chunk for member in bucket]
        ms, vs = ([member.state[name] for member in members] for name in ("exp_avg", "exp_avg_sq"))
        rows = [row for R in projections for row in R.unbind()]
        adam_moments_(ms, vs, rows, tuple(group["betas"]))
        quotients = iter(torch._foreach_div(ms, adam_denominators(vs, group["eps"])))
        return [
            Batch(bucket, G, own, R, stacked([next(quotients) for _ in bucket]))
            for bucket, G, own, R in zip(chunk, stacks, bases, projections, strict=True)
        ]

    @staticmethod
    def _step_size(group: dict[str, Any], step: int) -> float:
        """s of step 6 at the 0-based number of an update."""
        if not group["correct_bias"]:
            return float(group["lr"])
        (b1, b2), t = group["betas"], step + 1
        return float(group["lr"] * math.sqrt(1.0 - b2**t) / (1.0 - b1**t))

    def _members(self, group: dict[str, Any], units: Sequence[Unit]) -> list[Member]:
        place = {id(p): i for i, p in enumerate(group["params"])}
        first = self.first_matrix(group)
        indices = [place[id(unit.params[0])] for unit in units]
        offsets = offsets_of(group)
        members = []
        for unit, i, key in zip(units, indices, keys_of(group, first, indices), strict=True):
            step = unit.step - 1
            renewal = last_renewal(step, group["update_proj_gap"], offsets[i])
            members.append(Member(unit, key, step, renewal))
        return members

    def _all_bases(
        self, group: dict[str, Any], chunk: Sequence[Sequence[Member]], stacks: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Step 1 for each bucket of a chunk, with its gradients."""
        return [self._bases(group, bucket, G) for bucket, G in zip(chunk, stacks, strict=True)]

    def _bases(self, group: dict[str, Any], members: Sequence[Member], G: Tensor) -> dict[str, Tensor]:
        """Step 1: side -> (batch, d, r)."""
        sides = sides_of(group["proj_type"], G.shape)
        due = [i for i, member in enumerate(members) if member.step == member.renewal]
        for side in sides if due else ():
            chosen = [members[i] for i in due]
            olds = [member.state[side] for member in chosen]
            normal = functools.partial(self._normal, group, chosen, side, G)
            steps = [member.step for member in chosen]
            due_G = G if len(due) == len(members) else G[due]
            P = renewed(group["projection"], due_G, stacked(olds), side, normal, steps)
            torch._foreach_copy_(olds, list(P.unbind()))
        return {side: stacked([member.state[side] for member in members]) for side in sides}

    @staticmethod
    def _normal(
        group: dict[str, Any], members: Sequence[Member], side: str, like: Tensor, d: int, k: int
    ) -> Tensor:
        keys, renewals = [m.key for m in members], [m.renewal for m in members]
        return normal_basis(group["seed"] or 0, keys, renewals, side, d, k, like)

    # ---- the ledger

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        """Per matrix: projection, 14 an element of R and 3 an element of G, the direction, and the renewals
        spread over their period."""
        (m, n) = shapes[0]
        r = cls._rank(shapes[0], options)
        moments = math.prod(cls._state_layout(role, shapes, options)[0]["exp_avg"])
        plain = cls._projection_flops(m, n, r, options) + 14 * moments + 3 * m * n
        per_renewal = sum(
            cls._renewal_flops(m if side == "left" else n, n if side == "left" else m, r, options)
            for side in sides_of(options["proj_type"], (m, n))
        )
        return plain + cls._direction_flops(m, n, r, options) + per_renewal // int(options["update_proj_gap"])

    @staticmethod
    def _projection_flops(m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        """R = P^T G, or G P, or both; the same for P N."""
        left, right = 2 * m * n * r, 2 * r * n * r
        return left + right if options["proj_type"] == "full" else 2 * m * n * r

    @classmethod
    @abstractmethod
    def _direction_flops(cls, m: int, n: int, r: int, options: Mapping[str, Any]) -> int:
        """FLOPs of step 5."""

    @staticmethod
    def _renewal_flops(d: int, other: int, r: int, options: Mapping[str, Any]) -> int:
        """Of one basis d x r; a symmetric eigenproblem of order p is counted as 9 p^3 (Golub and Van Loan,
        4th edition, section 8.3.3), QR of d x r as 4 d r^2."""
        if options["projection"] == "svd":
            p = min(d, other)
            return 2 * p * d * other + 9 * p**3 + (0 if d <= other else 2 * d * other * r + 4 * d * r * r)
        if options["projection"] == "warm":
            return 4 * d * other * r + 4 * d * r * r
        if options["projection"] == "range_finder":
            return 12 * d * other * r + 20 * max(d, other) * r * r
        return 4 * d * r * r


def channel_factors(batches: Sequence[Batch]) -> tuple[Tensor, list[Tensor], Tensor]:
    """||N_j|| / (||R_j|| + 1e-8), one per vector of the dimension that was not projected: laid out, flat, and
    for each batch, per column for "left" (batch, 1, n), per row for "right" (batch, m, 1); and the norms
    ||R_j||, flat.
    """
    dims = [channel_dim(batch) for batch in batches]
    phi, parts = line_norms([batch.N for batch in batches], dims)
    of_R, _ = line_norms([batch.R for batch in batches], dims)
    phi.div_(of_R + 1e-8)
    return phi, parts, of_R


def channel_dim(batch: Batch) -> int:
    """The dimension along which a channel's vector lies, the projected one."""
    (side,) = batch.bases
    return -2 if side == "left" else -1


def limiting_factors(norms: Tensor, group: Mapping[str, Any], batches: Sequence[Batch]) -> Tensor:
    """What the norm-growth limiter multiplies updates by (matrices, 1, 1), given their norms (matrices,); the
    norms that are left go into the states.
    """
    members = [member for batch in batches for member in batch.members]
    states = [member.state["norm"] for member in members]
    divisors, limited = limit_growth(
        norms,
        torch.stack(states),
        firsts([member.step == 0 for member in members], norms.device),
        gamma=group["gamma"],
        rule=group["limiter"],
    )
    torch._foreach_copy_(states, list(limited.unbind()))
    return divisors.reciprocal_()[:, None, None]
