"""The part that all optimizers share: groups, roles and the step. It contains no update rule of its own, and
has what every optimizer knows of ranks from `ownership.py`, of costs from `cost.py`, of saving from
`state_dict.py`.

A **unit** is what a rule moves at once: a pair (A, B) for the role "factors", a triple (U, s, V) for "svd",
one parameter for every other role. A step is:

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

import inspect
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lowrise.distributed.sharding import is_sharded, local
from lowrise.errors import UsageError
from lowrise.layers.roles import param_groups
from lowrise.optim.engine.guard import Guard, usable
from lowrise.optim.engine.hyperball import RADIUS, check_hyperball, holds_norm, refuse_zero_matrices
from lowrise.optim.engine.options import (
    UNIT_SIZE,
    check_known_options,
    check_numbers,
    check_params,
    parameter_name,
)
from lowrise.optim.engine.other import update_by_adamw
from lowrise.optim.engine.ownership import Spread, here, seen_group, shape_of
from lowrise.optim.engine.product_decay import check_product, product_decayed
from lowrise.optim.engine.state_formats import (
    OPEN_ELEMENTS,
    Stored,
    check_format,
    compressed_elements,
    format_of,
    opened,
    uncompressed,
)
from lowrise.optim.engine.units import (
    Unit,
    chunked,
    narrow_elements,
    state_dtype,
    units_of,
    units_of_matrices,
    widened,
    with_states,
)
from lowrise.optim.engine.views import (
    CHOICE,
    as_matrices,
    check_view,
    matrices_of,
    split,
    split_state,
    write_back,
)
from lowrise.optim.rules.adamw import ADAMW_DEFAULTS, Form


class Optimizer(Spread):
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

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._guard = Guard()
        of_groups: dict[str, Any] = {"state_format": "float32", "view": None, "hyperball": False}
        of_groups |= {"fixed_gauge": False, "residual_norm": 0.0}
        super().__init__(params, {**ADAMW_DEFAULTS, **of_groups, **defaults})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.setdefault("_guard", Guard())
        super().__setstate__(state)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        lr: float | None = None,
        *,
        other_lr: float | None = None,
        other_weight_decay: float | None = None,
        other_betas: tuple[float, float] | None = None,
        other_eps: float | None = None,
        roles: Collection[str] | None = None,
        targets: str | Iterable[str] | None = None,
        skip: str | Iterable[str] | None = None,
        state_format: str | None = None,
        other_state_format: str | None = None,
        views: Mapping[str, str] | None = None,
        hyperball: bool = False,
        **options: Any,
    ) -> Self:
        """The optimizer over every trainable parameter of a model, each in the group of its role.

        Equal to `cls(param_groups(model, roles=cls.roles, ...), lr=lr, **options)`: `lr` (None: the class's
        default), `weight_decay`, `betas` and all other `options` of the constructor hold for every
        parameter; `other_*` say what differs for those that the built-in AdamW moves (norms, biases,
        embeddings, head, where the class does not take them itself). The rest is as in
        `lowrise.param_groups`. Raises `UsageError`.
        """
        own = inspect.signature(cls).parameters.keys() - {"params"}
        check_known_options(
            options, {*own, *inspect.signature(param_groups).parameters} - {"model"}, own, cls
        )
        groups = param_groups(
            model,
            other_lr=other_lr,
            other_weight_decay=other_weight_decay,
            other_betas=other_betas,
            other_eps=other_eps,
            roles=cls.roles if roles is None else roles,
            targets=targets,
            skip=skip,
            state_format=state_format,
            other_state_format=other_state_format,
            views=views,
            hyperball=hyperball,
        )
        construct: Callable[..., Self] = cls
        return construct(groups, **({} if lr is None else {"lr": lr}), **options)

    # ---- what a subclass writes

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
            self._settle_role(group, stated="role" in param_group)
            check_numbers(group, where=where)
            check_view(group, where=where)
            check_params(group)
            check_format(group, where=where)
            check_hyperball(group, self.ball_roles & self.roles, who=type(self).__name__, where=where)
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
            for param, layout in zip(unit, self._layouts(group, unit), strict=True):
                stored = {} if self.is_elsewhere(unit) else layout
                self.state[param] = _zero_state(param, stored, whole=self.owner(unit) is not None)
                self._built[param] = (param.shape, param.dtype)
        if group["role"] in self.roles:
            self._start_group(group)

    def _adopt_exchanged(self) -> None:
        """Make the state anew if groups hold other Parameter objects than at construction, as after
        accelerate's FSDP2 has sharded the model. Raises `UsageError` if a step has been taken.
        """
        unknown = [
            parameter_name(g, i)
            for g in self.param_groups
            for i, p in enumerate(g["params"])
            if p not in self.state
        ]
        if not unknown:
            return
        if any(float(state["step"]) for state in self.state.values() if "step" in state):
            raise UsageError(
                f"{unknown[0]} ({len(unknown)} in all) was exchanged for another Parameter after steps had "
                "been taken, so its moments cannot be found: build the optimizer after the model has been "
                "sharded or converted, and load its state with load_state_dict."
            )
        self.state.clear()
        self._forget_owners()
        for group in self.param_groups:
            check_params(group)
            self._create_state(group)

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

    def _settle_role(self, group: dict[str, Any], *, stated: bool) -> None:
        """A group without a role is "matrix" if all its parameters are 2-D; else "other", where the class
        moves that itself.
        """
        if stated:
            if group["role"] not in UNIT_SIZE:
                raise UsageError(
                    f"parameter group {len(self.param_groups) - 1} has the role {group['role']!r}; "
                    f"choose one of {', '.join(UNIT_SIZE)}."
                )
            return
        seen_as_matrices = group.get("view") is not None
        not_2d = next(
            (i for i, p in enumerate(group["params"]) if p.ndim != 2 and not seen_as_matrices), None
        )
        group["role"] = "matrix" if not_2d is None or "other" not in self.roles else "other"
        own = " and ".join(sorted(self.roles))
        if group["role"] not in self.roles:
            raise UsageError(
                f"{type(self).__name__} moves the roles {own}, and parameters given without a role are taken "
                'as dense matrices; give groups with a role, for example {"params": [A0, B0, A1, B1], '
                '"role": "factors"}, or use lowrise.param_groups(model, lr=...).'
            )
        if not_2d is not None and group["role"] == "matrix":
            raise UsageError(
                f"{parameter_name(group, not_2d)} has shape {tuple(group['params'][not_2d].shape)} but was "
                f"given to {type(self).__name__} without a role, where only 2-D matrices may be; put it into "
                f'a group with role="other" or with a view ({CHOICE}), or use '
                "lowrise.param_groups(model, lr=...)."
            )

    def _layouts(self, group: Mapping[str, Any], unit: Sequence[Tensor]) -> tuple[Stored, ...]:
        """What is stored for the parameters of one unit of a group."""
        shapes = tuple(tuple(p.shape) for p in unit)
        return self._stored_layouts(group["role"], shapes, group, state_dtype(unit[0]))

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
        self.sent_bytes, self.wait_seconds = 0, 0.0
        self.settle()
        self._adopt_exchanged()
        ready = [
            [unit for unit in units_of(group) if self._has_gradient(unit)] for group in self.param_groups
        ]
        for group, units in zip(self.param_groups, ready, strict=True):
            self._check_start(group, units)
        left_out = set() if known else self._unusable()
        try:
            for group, units in zip(self.param_groups, ready, strict=True):
                units = [unit for unit in units if id(unit[0]) not in left_out]
                self._move(group, [self._unit(unit) for unit in units if self.owner(unit) is None])
                self._move_owned(group, [unit for unit in units if self.owner(unit) is not None])
        finally:
            self._guard.end()
        return loss

    def _check_start(self, group: dict[str, Any], units: Sequence[tuple[Tensor, ...]]) -> None:
        """Raise `UsageError` for units whose first update this is and that it cannot begin with."""
        if holds_norm(group):
            refuse_zero_matrices([(group, unit) for unit in units], self.state, self.ranks())

    def _unusable(self) -> set[int]:
        """Ids of the first parameters of units that this step leaves out for their gradients; others may be
        masked (`guard.py`).
        """
        units = [unit for group in self.param_groups for unit in units_of(group)]
        return self._guard.sift(units, self.state, self.ranks())

    def skipped_updates(self) -> int:
        """Updates of single units that were skipped so far, as their gradients were not finite or too large;
        since the optimizer was built or copied. On a GPU this waits for the last step's check.
        """
        self.settle()
        return self._guard.skipped

    def settle(self) -> None:
        self._guard.settle()

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
        with _no_autocast():
            # A bounded number of elements at a time, as moments and gradients are widened.
            for safe in self._guard.protected(units, wholes):
                for part in _parts(group, safe):
                    wide = widened(part)
                    with self._opened(group, [p for unit in part for p in unit.params]) as states:
                        whole = [here(unit, wholes) for unit in with_states(wide, states)]
                        with _viewed(seen, whole) as (viewed_group, matrices):
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
            first += sum(_num_matrices(p, other) for p in other["params"])
        return first

    def opened_state(
        self, group: dict[str, Any], params: Sequence[Tensor]
    ) -> AbstractContextManager[list[dict[str, Tensor]]]:
        """The state of some parameters of a group, with moments in float32 whatever their format; what is
        written into them in place is stored at the end. For use between two steps.
        """
        self.settle()
        return self._opened(group, params)

    @contextmanager
    def _opened(self, group: dict[str, Any], params: Sequence[Tensor]) -> Iterator[list[dict[str, Tensor]]]:
        """The same within a step."""
        states = [self.state[p] for p in params]
        if format_of(group) == "float32":
            yield states
            return
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        place = {id(p): f"{number}/{i}" for i, p in enumerate(group["params"])}
        with opened(states, [place[id(p)] for p in params]) as floats:
            yield floats

    def _has_gradient(self, params: tuple[Tensor, ...]) -> bool:
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            raise UsageError(
                f"{type(self).__name__} met a sparse gradient of shape {tuple(params[0].shape)}; "
                "build the embedding with sparse=False."
            )
        for p in params:
            grad = p.grad
            if self._built.get(p) != (p.shape, p.dtype) or (grad is not None and grad.shape != p.shape):
                self._refuse_changed(p)
        return any(p.grad is not None for p in params)

    def _refuse_changed(self, param: Tensor) -> None:
        """Raise `UsageError` for a parameter that is not what its state was made for."""
        name = next(
            parameter_name(g, i) for g in self.param_groups for i, p in enumerate(g["params"]) if p is param
        )
        shape, dtype = self._built.get(param, (None, None))
        if shape is None:
            self._adopt_exchanged()
            return
        if shape != param.shape:
            raise UsageError(
                f"{name} had shape {tuple(shape)} when the optimizer was built and has {tuple(param.shape)} "
                "now, so its moments do not fit: build the optimizer after resizing the model "
                "(resize_token_embeddings and the like)."
            )
        if dtype != param.dtype:
            if state_dtype(param) == (torch.float64 if dtype == torch.float64 else torch.float32):
                self._built[param] = (param.shape, param.dtype)  # bfloat16 weights over float32 moments
                return
            raise UsageError(
                f"{name} had dtype {dtype} when the optimizer was built and has {param.dtype} now, so its "
                "moments have another precision: build the optimizer after converting the model."
            )
        assert param.grad is not None
        raise UsageError(
            f"the gradient of {name} has shape {tuple(param.grad.shape)} and the parameter "
            f"{tuple(param.shape)}: it is left from before a change; call zero_grad() and compute it again."
        )

    def _ready_unit(self, params: tuple[Tensor, ...]) -> Unit | None:
        """Step 2 for one unit, with this rank's rows of its gradients; None where it has none."""
        return self._unit(params) if self._has_gradient(params) else None

    def _unit(self, params: tuple[Tensor, ...]) -> Unit:
        """Step 2 for one unit that has a gradient."""
        grads = tuple(
            torch.zeros_like(local(p), dtype=state_dtype(p)) if p.grad is None else local(p.grad)
            for p in params
        )
        return Unit(params, grads, tuple(self.state[p] for p in params))

    def after_update(self, number: int, total: int) -> None:
        """Called by a training loop after the step of update `number` (1 to `total`) and the layers' own
        `after_update`, for what goes by the loop's count. Must depend on its arguments, groups and state
        alone.
        """

    def timed(self, number: int, total: int) -> object:
        """What `after_update` does at update `number` of `total` because of the time alone; a run may be
        made longer where this is equal for both lengths.
        """
        return None

    def resets(self, total_steps: int, skipped: int = 0) -> tuple[int, ...]:
        """Updates of a training loop, 1 to `total_steps`, after which this optimizer drops its moments, so
        that a schedule may dip there. None by default.

        `skipped`: updates so far for which the loop did not call `step`. A rule that counts its own steps
        comes that many updates later from then on.
        """
        return ()

    def rewritten(self) -> list[Tensor]:
        """Parameters that the last step left in another basis than they were in, besides moving them: a mean
        of them from before and after would be of nothing. Counters alone say it: nothing waits for the
        device.
        """
        return []

    def _pairs_where(self, due: Callable[[Mapping[str, Any], Mapping[str, Tensor]], bool]) -> list[Tensor]:
        """Parameters of this class's units whose group and first state are `due`, for `rewritten`."""
        return [
            p
            for group in self.param_groups
            if group["role"] in self.roles
            for unit in units_of(group)
            if due(group, self.state[unit[0]])
            for p in unit
        ]

    def retain(self, parameters: Iterable[Tensor]) -> None:
        """Forget every parameter that is not among these, and its state: for layers that drop some in
        mid-training.

        Groups keep their places, if need be without parameters. Raises `UsageError`, changing nothing, if a
        unit would be torn apart.
        """
        kept = {id(p) for p in parameters}
        for group in self.param_groups:
            for unit in units_of(group):
                if len({id(p) in kept for p in unit}) > 1:
                    raise UsageError(
                        f"a unit of the role {group['role']!r} cannot lose a part of its parameters; drop "
                        "all of them or none."
                    )
        for group in self.param_groups:
            keep = [id(p) in kept for p in group["params"]]
            if all(keep):
                continue
            for param, stays in zip(group["params"], keep, strict=True):
                if not stays:
                    del self.state[param]
                    self._owners.pop(param, None)
                    self._built.pop(param, None)
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [x for x, stays in zip(group[key], keep, strict=True) if stays]


def _no_autocast() -> AbstractContextManager[Any]:
    """Rules choose their own precision: a step within `torch.autocast` has the bits of one outside."""
    enabled = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not enabled:
        return nullcontext()  # which `torch.compile` follows
    stack = ExitStack()
    for device in enabled:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


@contextmanager
def _viewed(group: dict[str, Any], units: list[Unit]) -> Iterator[tuple[dict[str, Any], list[Unit]]]:
    """Step 5: the group and its units with the matrices of the group's view in the place of tensors; what is
    written into copies is written back at the end.
    """
    view = group.get("view")
    if view is None:
        yield group, units
        return
    matrices = {id(p): split(p.detach(), view) for p in group["params"]}
    parts = [units_of_matrices(unit, matrices[id(unit.params[0])], view) for unit in units]
    yield as_matrices(group, matrices), [unit for part in parts for unit in part]
    for unit in units:
        write_back(unit.params[0], matrices[id(unit.params[0])])


def _num_matrices(param: Tensor, group: Mapping[str, Any]) -> int:
    return matrices_of(tuple(param.shape), group.get("view"))[0]


def _parts(group: Mapping[str, Any], units: list[Unit]) -> Iterable[list[Unit]]:
    """Units whose moments and gradients may be in float32 at the same time, where they are not always."""
    compressed = format_of(group) != "float32"

    def elements(unit: Unit) -> int:
        if holds_norm(group):  # ranks that share rows meet in the rule, and so make the same parts
            return sum(p.numel() for p in unit.params)
        return narrow_elements(unit) + (compressed_elements(unit.states) if compressed else 0)

    return chunked(units, elements, OPEN_ELEMENTS)


def _zero_state(param: Tensor, stored: Stored, *, whole: bool = False) -> dict[str, Tensor]:
    """Zeros for each tensor; one of a shared parameter's shape is shared like it, unless it is kept whole."""
    state = {"step": torch.zeros((), dtype=torch.float32)}
    for key, (shape, dtype) in stored.items():
        if shape == tuple(param.shape) and not (whole and is_sharded(param)):
            state[key] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        else:
            state[key] = torch.zeros(shape, dtype=dtype, device=param.device)
    return state
