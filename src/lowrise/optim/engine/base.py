"""The part that all optimizers share: groups, roles and the step. It contains no update rule of its own.

What it knows of other ranks is an object, `ownership` (`ownership.py`); what it has of saving
(`state_dict.py`), of costs (`cost.py`) and of a loop's count (`scheduled.py`) stands in base classes; the
rest are functions.

A **unit** is what a rule updates in one go: a pair (A, B) for the role "factors", a triple (U, s, V) for
"svd", one parameter for every other role. A step is:

1. call the closure, if there is one;
2. per group, collect the units that have a gradient. A unit without any is left alone and its counter stands
   still; within a unit a missing gradient counts as zeros. So is one whose gradients are not finite or too
   large to be squared (`guard.py`);
3. count: `state["step"] += 1` for each parameter of these units, so that a rule sees t = 1 at its first
   update;
4. open their moments in float32 if the group's `state_format` stores them otherwise (`state_formats.py`), and
   widen gradients of bfloat16 parameters, a bounded number at a time; take as matrices what the group's
   `view` makes of their tensors (`views.py`);
5. hand the units to the class's `_update` if the group's role is one of its `roles`, else to the built-in
   AdamW. A rule sees 2-D tensors and float32 moments, may be handed a part of the group's units, and writes
   in place;
6. store the moments again.

A subclass writes `roles`, `_state_layout` (names and shapes of its state, from shapes alone), `_update`,
`_unit_flops` and, where its state does not start at zero, `_start_state`. Everything it needs between two
steps is in the state and in the groups: an optimizer has no other attributes, so copying, pickling and
resuming cannot lose any (but for who owns what, which belongs to the ranks: `ownership.py`).

State is tensors: float32 (float64 for float64 parameters) whatever the dtype of the parameter, unless its
format says otherwise, and one 0-dim float32 `step` on the CPU, as in torch.optim. All of it exists from
construction on.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lowrise.distributed.sharding import ShardGroup, local
from lowrise.errors import UsageError
from lowrise.layers.roles import LINEAR, warn_if_idle
from lowrise.optim.engine.cost import Counted
from lowrise.optim.engine.exchange import retain, was_exchanged_outside
from lowrise.optim.engine.from_model import FromModel
from lowrise.optim.engine.guard import Guard, unit_dtype, usable
from lowrise.optim.engine.hyperball import RADIUS, check_hyperball, holds_norm, refuse_zero_matrices
from lowrise.optim.engine.options import (
    check_choices,
    check_numbers,
    check_params,
    made_for,
    parameter_name,
    refuse_changed,
    settle_role,
)
from lowrise.optim.engine.other import update_by_adamw
from lowrise.optim.engine.ownership import Ownership, here, seen_group, shape_of, zero_state
from lowrise.optim.engine.product_decay import check_product, decays_product, product_decayed
from lowrise.optim.engine.scheduled import Scheduled
from lowrise.optim.engine.state_formats import check_format, format_of, uncompressed
from lowrise.optim.engine.step import no_autocast, parts, viewed
from lowrise.optim.engine.units import Unit, state_dtype, units_of, widened, with_states
from lowrise.optim.engine.views import as_matrices, check_view, matrices_of, split, split_state
from lowrise.optim.rules.adamw import ADAMW_DEFAULTS, Form


class MovedAlone(NamedTuple):
    """What `Optimizer.move_alone` did with a unit."""

    grad_norm: float
    """||its gradients||_F."""
    moved: bool


class Optimizer(FromModel, Scheduled, Counted):
    """A torch optimizer whose groups carry a `role`: base class of all methods.

    A step, for every group:

    1. collect the tuples of parameters that are updated together and have a gradient: a pair (A, B) for the
       role "factors", a triple (U, s, V) for "svd", one parameter for every other role
    2. count the step, open moments that are stored in a narrower format, and widen gradients to float32
    3. call the class's rule if the role is one of its `roles`, else the built-in AdamW; the rule writes in
       place
    4. store the moments again

    The module's docstring has the steps in full and says what a subclass writes.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters.
        defaults: The constructor's options and their values; each may be overridden by a group. A class
            without `betas` and `eps` has those of the built-in AdamW. Three options are of groups alone:
            `state_format` ("float32", "bfloat16", "8bit"), for the role "matrix" `view` (None, "flatten",
            "stack"), and for the class's `ball_roles` `hyperball` (weights of fixed norm).

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    keeps_orthonormal: ClassVar[bool] = False  # whether U and V of role "svd" stay orthonormal
    decays_products: ClassVar[bool] = False  # whether the rule itself does what `decay = "product"` says
    adamw_form: ClassVar[Form] = "torch"  # of the built-in AdamW
    ball_roles: ClassVar[frozenset[str]] = frozenset()  # whose rule can fix norms (`hyperball.py`)

    native_passes: ClassVar[bool] = False
    """Whether its steps on a CPU have a form in C++ (`linalg/passes.py`)."""
    by_rows: ClassVar[frozenset[str]] = frozenset()
    """Those of `roles` whose rule moves every row of a parameter by itself."""
    ball_by_rows: ClassVar[frozenset[str]] = frozenset()
    """Those whose rule does so, and sums over ranks, where the group fixes norms (`hyperball.py`)."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._guard, self.ownership = Guard(), Ownership()
        self._built = {}
        of_groups: dict[str, Any] = {"state_format": "float32", "view": None, "hyperball": False}
        of_groups |= {"fixed_gauge": False, "residual_norm": 0.0}
        super().__init__(params, {**ADAMW_DEFAULTS, **of_groups, **defaults})
        if any(group["role"] in LINEAR for group in self.param_groups):
            warn_if_idle(self.param_groups, self.roles)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, which has none of what follows: its owners are appointed anew."""
        self.__dict__.setdefault("_guard", Guard())
        self.__dict__.setdefault("ownership", Ownership())
        super().__setstate__(state)
        self._built = {p: made_for(p) for group in self.param_groups for p in group["params"]}
        for group in self.param_groups:
            self._appoint(group)

    # ---- what a subclass writes

    @staticmethod
    def options(values: Mapping[str, Any]) -> dict[str, Any]:
        """`defaults` of a constructor `(self, params, lr=..., *, option=...)`, out of its `locals()`. A value
        that the `Literal` of its annotation does not list is refused when a group is added.
        """
        return {name: value for name, value in values.items() if name not in ("self", "params", "__class__")}

    @abstractmethod
    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        """Move the units of one group in place."""

    def _check_options(self, group: Mapping[str, Any]) -> None:
        """Raise `UsageError` for options of a group that the class cannot run with."""

    def _decaying(self, group: Mapping[str, Any], units: list[Unit]) -> list[Unit]:
        """Those of the units that this update decays; all by default."""
        return units

    def _start_state(
        self, group: dict[str, Any], param: Tensor, index: int, state: dict[str, Tensor]
    ) -> None:
        """Write start values other than zero in place; `index` counts the parameters of the optimizer from 0,
        each matrix of a stack for itself. Moments start at zero: they are not here if they are compressed.
        """

    # ---- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check the group, add it, and create its state. Raises `UsageError` naming the parameter; then
        nothing is added.
        """
        group = dict(param_group)
        if any("initial_lr" in other for other in self.param_groups) and "initial_lr" not in group:
            raise UsageError(
                "a group is added after a learning-rate scheduler was built, which has one rate for each "
                "group that it saw: call add_param_group before the scheduler is built, or give the group an "
                '"initial_lr" and append that to scheduler.base_lrs.'
            )
        super().add_param_group(group)
        try:
            where = f"parameter group {len(self.param_groups) - 1}"
            settle_role(group, len(self.param_groups) - 1, self.roles, type(self).__name__)
            check_numbers(group, where=where)
            check_view(group, where=where)
            check_params(group)
            check_format(group, where=where)
            check_hyperball(group, self.ball_roles & self.roles, who=type(self).__name__, where=where)
            check_choices(group, type(self))
            check_product(group)
            matrices = {id(p): split(shape_of(p), group["view"]) for p in group["params"]}
            self._check_options(as_matrices(group, matrices) if group["view"] else group)
        except UsageError:
            self.param_groups.pop()
            raise
        self._create_state(group)

    def _create_state(self, group: dict[str, Any]) -> None:
        """Owners and state, with its start values, of the parameters of one group."""
        self._appoint(group)
        for unit in units_of(group):
            elsewhere, owned = self.ownership.is_elsewhere(unit), self.ownership.owner(unit) is not None
            for param, layout in zip(unit, self.layouts(group, unit), strict=True):
                self.state[param] = zero_state(param, {} if elsewhere else layout, whole=owned)
                self._built[param] = made_for(param)
        if group["role"] in self.roles:
            self._start_group(group)

    def _start_group(self, group: dict[str, Any]) -> None:
        """Start values of every matrix of the group, which is the last one."""
        index = self.first_matrix(group)
        for param in group["params"]:
            matrices = split(shape_of(param), group["view"])
            states = split_state(uncompressed(self.state[param]), len(matrices), group["view"])
            for matrix, state in zip(matrices, states, strict=True):
                if state.keys() - {"step", RADIUS}:  # what the rule itself keeps
                    self._start_state(group, matrix, index, state)
                index += 1

    def _adopt_exchanged(self) -> None:
        """Make the state anew if groups hold other Parameter objects than at construction, as after
        accelerate's FSDP2 has sharded the model. Raises `UsageError` if a step has been taken.
        """
        if was_exchanged_outside(self):
            shared_with, self.ownership, self._built = self.ownership.shared_with, Ownership(), {}
            self.ownership.shared_with = shared_with
            self.state.clear()
            for group in self.param_groups:
                check_params(group)
                self._create_state(group)

    def retain(self, parameters: Iterable[Tensor]) -> None:
        """Forget every parameter that is not among these, and its state: for layers that drop some in
        mid-training.

        Groups keep their places, if need be without parameters. Raises `UsageError`, changing nothing, if a
        unit would be torn apart.
        """
        retain(self, parameters)

    # ---- several ranks

    def share_work(self, ranks: ShardGroup) -> None:
        """Give each unit of which every rank has a copy, and whose rule needs it whole, to one rank.

        Call it before the first step, and sum gradients over ranks as before. The state of units that other
        ranks own is dropped here.
        """
        self.ownership.shared_with = ranks
        for group in self.param_groups:
            self._appoint(group)
            for unit in units_of(group):
                if self.ownership.is_elsewhere(unit):
                    for p in unit:
                        self.state[p] = {"step": self.state[p]["step"]}

    def _appoint(self, group: dict[str, Any]) -> None:
        """Owners for a group, unless its rule takes each row by itself and nothing else needs whole ones."""
        rows = self.ball_by_rows if holds_norm(group) else self.by_rows
        by_itself = group["role"] not in self.roles or group["role"] in rows
        whole = format_of(group) != "float32" or group.get("view") is not None or decays_product(group)
        self.ownership.appoint(group, by_rows=by_itself and not whole, cost_of=partial(self._flops_of, group))

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, grad_norm: float | None = None) -> Any:
        """One update of every parameter that has a gradient. `p.grad` is read, never written. Returns the
        closure's value.

        grad_norm: a bound of the norm of all gradients together, where the caller knows one (as after
            clipping, the same on all ranks). Below the limit of `guard.py` no unit is checked by itself.
        """
        loss, known = None, grad_norm is not None and closure is None and usable(grad_norm)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_rates()
        self.ownership.begin()
        self.settle()
        self._adopt_exchanged()
        ready = [
            [unit for unit in units_of(group) if self._has_gradient(unit)] for group in self.param_groups
        ]
        if not any(ready) and not self._told_of_no_gradient:
            self._told_of_no_gradient = True
            warnings.warn(
                f"{type(self).__name__} met no gradient at this step. If the model was moved to another kind "
                "of device, or given other Parameters, after the optimizer was built, it trains those of "
                "before: build it after.",
                stacklevel=4,
            )
        for group, units in zip(self.param_groups, ready, strict=True):
            self._check_start(group, units)
        left_out = set() if known else self._unusable()
        owner = self.ownership.owner
        try:
            for group, units in zip(self.param_groups, ready, strict=True):
                units = [unit for unit in units if id(unit[0]) not in left_out]
                owned = [unit for unit in units if owner(unit) is not None]
                self._move(group, [self._unit(unit) for unit in units if owner(unit) is None])
                self.ownership.update(owned, self.state, partial(self._move, group))
        finally:
            self._guard.end()
        return loss

    def _check_rates(self) -> None:
        """Raise `UsageError` for a rate that no update can have, before anything moves: what sets rates after
        the constructor is a scheduler or a loop.
        """
        for i, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Real) and not 0.0 <= float(group["lr"]) < math.inf:
                raise UsageError(
                    f"parameter group {i} has lr = {group['lr']!r} at this step; it must be a finite number, "
                    "0 or more: look at what has set it since the optimizer was built."
                )

    def _check_start(self, group: dict[str, Any], units: Sequence[tuple[Tensor, ...]]) -> None:
        """Raise `UsageError` for units whose first update this is and that it cannot begin with."""
        if holds_norm(group):
            refuse_zero_matrices([(group, unit) for unit in units], self.state, self.ownership.ranks)

    def _unusable(self) -> set[int]:
        """Ids of the first parameters of units that this step leaves out for their gradients; others may be
        masked (`guard.py`).
        """
        units = [unit for group in self.param_groups for unit in units_of(group)]
        return self._guard.sift(units, self.state, self.ownership.ranks)

    def skipped_updates(self) -> int:
        """Updates of single units that were skipped so far, as their gradients were not finite or too large;
        since the optimizer was built or copied. On a GPU this waits for the last step's check.
        """
        self.settle()
        return self._guard.skipped

    def settle(self) -> None:
        self._guard.settle()

    @torch.no_grad()
    def move_alone(self, group: dict[str, Any], params: tuple[Tensor, ...]) -> MovedAlone | None:
        """Steps 2 to 6 for one unit, apart from `step` (`in_backward.py`). It is left alone, and counted, if
        its gradient is not usable; None, and nothing done, where it has none. Waits for the device.
        """
        if not self._has_gradient(params):
            return None
        self._check_start(group, [params])
        (unit,) = widened([self._unit(params)])
        norm = float(torch.stack(torch._foreach_norm(list(unit.grads))).norm())
        moves = usable(norm, unit_dtype(params))
        if moves:
            self._move(group, [unit])
        else:
            self._guard.skipped += 1
        return MovedAlone(norm, moves)

    def _move(
        self, group: dict[str, Any], units: list[Unit], wholes: Mapping[int, Tensor] | None = None
    ) -> None:
        """Steps 3 to 6 for units of one group; `wholes` has the matrices of owned units by the id of their
        parameters.
        """
        if not units:
            return
        own = group["role"] in self.roles
        rule = self._update if own else partial(update_by_adamw, form=self.adamw_form)
        seen = seen_group(group, wholes)
        torch._foreach_add_([s["step"] for unit in units for s in unit.states], 1.0)
        with no_autocast():
            # A bounded number of elements at a time, as moments and gradients are widened.
            for safe in self._guard.protected(units, wholes):
                for part in parts(group, safe):
                    wide = widened(part)
                    with self._opened(group, [p for unit in part for p in unit.params]) as states:
                        whole = [here(unit, wholes) for unit in with_states(wide, states)]
                        with viewed(seen, whole) as (viewed_group, matrices):
                            self._apply(rule, viewed_group, matrices)

    def _apply(
        self, rule: Callable[[dict[str, Any], list[Unit]], None], group: dict[str, Any], units: list[Unit]
    ) -> None:
        """The rule, after the decay of products where the group asks for it."""
        if self.decays_products:
            rule(group, units)
            return
        with product_decayed(group, units, self._decaying(group, units)) as (seen, decayed):
            rule(seen, decayed)

    def first_matrix(self, group: Mapping[str, Any]) -> int:
        """The number of matrices (tensors, where there is no view) in the groups before this one, which may
        also be what a rule is handed for it.
        """
        given, first = group.get("viewed_group", group), 0
        for other in self.param_groups:
            if other is given:
                break
            first += sum(matrices_of(tuple(p.shape), other.get("view"))[0] for p in other["params"])
        return first

    def _has_gradient(self, params: tuple[Tensor, ...]) -> bool:
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            raise UsageError(
                f"{type(self).__name__} met a sparse gradient of shape {tuple(params[0].shape)}; "
                "build the embedding with sparse=False."
            )
        for p in params:
            grad = p.grad
            if self._built.get(p) != made_for(p) or (grad is not None and grad.shape != p.shape):
                self._check_unchanged(p)
        moves = any(p.grad is not None for p in params)
        frozen = [p for p in params if p.grad is None and not p.requires_grad]
        if moves and frozen:
            raise UsageError(
                f"{self._name_of(frozen[0])} is frozen (requires_grad = False), and what it is multiplied by "
                f"is not: {type(self).__name__} moves them together. Freeze all of them or none."
            )
        return moves

    def _check_unchanged(self, param: Tensor) -> None:
        """Raise `UsageError` for a parameter that is not what its state was made for."""
        if param not in self._built:
            self._adopt_exchanged()
            return
        refuse_changed(self._name_of(param), param, self._built[param])
        self._built[param] = made_for(param)

    def _name_of(self, param: Tensor) -> str:
        groups = self.param_groups
        return next(parameter_name(g, i) for g in groups for i, p in enumerate(g["params"]) if p is param)

    def _unit(self, params: tuple[Tensor, ...]) -> Unit:
        """Step 2 for one unit that has a gradient."""
        grads = tuple(
            torch.zeros_like(local(p), dtype=state_dtype(p)) if p.grad is None else local(p.grad)
            for p in params
        )
        return Unit(params, grads, tuple(self.state[p] for p in params))
