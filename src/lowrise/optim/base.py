"""The part that all optimizers share: groups, roles, state, saving and loading. It contains no update rule of
its own.

A **unit** is what a rule moves at once: a pair (A, B) for the role "factors", a triple (U, s, V) for "svd",
one parameter for every other role. A step is:

1. call the closure, if there is one;
2. per group, collect the units that have a gradient. A unit without any is left alone and its counter stands
   still; within a unit a missing gradient counts as zeros;
3. count: `state["step"] += 1` for each parameter of these units, so that a rule sees t = 1 at its first
   update;
4. open their moments in float32 if the group's `state_format` stores them otherwise (`formats.py`), a
   bounded number at a time, and take as matrices what the group's `view` makes of their tensors
   (`views.py`);
5. hand the units to the class's `_update` if the group's role is one of its `roles`, else to the built-in
   AdamW. A rule sees 2-D tensors and float32 moments, may be handed a part of the group's units, and writes
   in place;
6. store the moments again.

A subclass writes `roles`, `_state_layout` (names and shapes of its state, from shapes alone), `_update`,
`_unit_flops` and, where its state does not start at zero, `_start_state`. Everything it needs between two
steps is in the state and in the groups: an optimizer has no other attributes, so copying, pickling and
resuming cannot lose any.

State is tensors: float32 (float64 for float64 parameters) whatever the dtype of the parameter, unless its
format says otherwise, and one 0-dim float32 `step` on the CPU, as in torch.optim. All of it exists from
construction on.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.adamw_rule import (
    ADAMW_DEFAULTS,
    ADAMW_FLOPS_PER_ELEMENT,
    Form,
    adamw_layout,
    adamw_update_,
)
from lowrise.optim.checks import (
    UNIT_SIZE,
    check_numbers,
    check_params,
    parameter_name,
    require_match,
    unit_size,
)
from lowrise.optim.formats import (
    OPEN_ELEMENTS,
    Stored,
    check_format,
    compressed_elements,
    format_of,
    opened,
    stored_layout,
    uncompressed,
)
from lowrise.optim.views import CHOICE, as_matrices, check_view, matrices_of, split, split_state, write_back

Shape = tuple[int, ...]
Layout = dict[str, Shape]  # state name -> shape, for one parameter
T = TypeVar("T")

# Most elements that one batched call works on, so that the temporaries of a step stay small beside the model
# (256 MiB in float32), however many matrices share a shape.
MAX_BATCH_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Unit:
    """Parameters that are moved together, with their gradients (state dtype) and state, in the role's
    order.
    """

    params: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    states: tuple[dict[str, Tensor], ...]


class Optimizer(torch.optim.Optimizer):
    """A torch optimizer whose groups carry a `role`; see the module's docstring for the steps and for
    subclassing.
    """

    roles: ClassVar[frozenset[str]] = frozenset()
    keeps_orthonormal: ClassVar[bool] = False  # whether U and V of role "svd" stay orthonormal
    adamw_form: ClassVar[Form] = "torch"  # of the built-in AdamW

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        """`defaults` are the constructor's options; each may be overridden by a group. Raises `UsageError`.

        A class without `betas` and `eps` of its own has those of the built-in AdamW. Two options are of
        groups alone: `state_format` ("float32", "bfloat16", "8bit") and, for the role "matrix", `view` (None,
        "flatten", "stack").
        """
        super().__init__(params, {**ADAMW_DEFAULTS, "state_format": "float32", "view": None, **defaults})

    # ---- what a subclass writes

    @classmethod
    @abstractmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        """State of one unit of a role in `roles`: per parameter its names and shapes, without `step`."""

    @abstractmethod
    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        """Move the units of one group in place."""

    @classmethod
    @abstractmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        """FLOPs of one step for one unit of a role in `roles`."""

    def _check_options(self, group: Mapping[str, Any]) -> None:
        """Raise `UsageError` for options of a group that the class cannot run with."""

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
        super().add_param_group(group)
        try:
            where = f"parameter group {len(self.param_groups) - 1}"
            self._settle_role(group, stated="role" in param_group)
            check_numbers(group, where=where)
            check_view(group, where=where)
            check_params(group)
            check_format(group, where=where)
            matrices = {id(p): split(p.detach(), group["view"]) for p in group["params"]}
            self._check_options(as_matrices(group, matrices) if group["view"] else group)
        except UsageError:
            self.param_groups.pop()
            raise
        for unit in _units(group):
            for param, layout in zip(unit, self._layouts(group, unit), strict=True):
                self.state[param] = _zero_state(param, layout)
        if group["role"] in self.roles:
            self._start_group(group)

    def _start_group(self, group: dict[str, Any]) -> None:
        """Start values of every matrix of the group, which is the last one."""
        index = self.first_matrix(group)
        for param in group["params"]:
            matrices = split(param.detach() if group["view"] else param, group["view"])
            states = split_state(uncompressed(self.state[param]), len(matrices), group["view"])
            for matrix, state in zip(matrices, states, strict=True):
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

    @classmethod
    def _stored_layouts(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any], dtype: torch.dtype
    ) -> tuple[Stored, ...]:
        """The class's layout, for the matrices of the view, in the format; `dtype` where that is float32."""
        view = options.get("view")
        counted = [matrices_of(shape, view) for shape in shapes]
        inner = tuple(shape for _, shape in counted)
        layouts = cls._state_layout(role, inner, options) if role in cls.roles else adamw_layout(inner)
        if view == "stack":
            layouts = tuple(
                {name: (count, *shape) for name, shape in layout.items()}
                for (count, _), layout in zip(counted, layouts, strict=True)
            )
        return tuple(stored_layout(layout, format_of(options), dtype) for layout in layouts)

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. `p.grad` is read, never written. Returns the
        closure's value.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ready = (self._ready_unit(params) for params in _units(group))
            self._move(group, [unit for unit in ready if unit is not None])
        return loss

    def _move(self, group: dict[str, Any], units: list[Unit]) -> None:
        """Steps 3 to 6 for units of one group."""
        if not units:
            return
        torch._foreach_add_([s["step"] for unit in units for s in unit.states], 1.0)
        for part in _parts(group, units):
            with self.opened_state(group, [p for unit in part for p in unit.params]) as states:
                self._apply(group, _with_states(part, states))

    def _apply(self, group: dict[str, Any], units: list[Unit]) -> None:
        """Step 5, with the matrices of the group's view in the place of its tensors."""
        if group.get("view") is None:
            self._apply_rule(group, units)
            return
        matrices = {id(p): split(p.detach(), group["view"]) for p in group["params"]}
        parts = [_units_of_matrices(unit, matrices[id(unit.params[0])], group["view"]) for unit in units]
        self._apply_rule(as_matrices(group, matrices), [unit for part in parts for unit in part])
        for unit in units:
            write_back(unit.params[0], matrices[id(unit.params[0])])

    def _apply_rule(self, group: dict[str, Any], units: list[Unit]) -> None:
        if group["role"] in self.roles:
            self._update(group, units)
        else:
            update_by_adamw(group, units, form=self.adamw_form)

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

    @contextmanager
    def opened_state(
        self, group: dict[str, Any], params: Sequence[Tensor]
    ) -> Iterator[list[dict[str, Tensor]]]:
        """The state of some parameters of a group, with moments in float32 whatever their format; what is
        written into them in place is stored at the end.
        """
        states = [self.state[p] for p in params]
        if format_of(group) == "float32":
            yield states
            return
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        place = {id(p): f"{number}/{i}" for i, p in enumerate(group["params"])}
        with opened(states, [place[id(p)] for p in params]) as floats:
            yield floats

    def _ready_unit(self, params: tuple[Tensor, ...]) -> Unit | None:
        """Step 2 for one unit; None where it has no gradient."""
        if all(p.grad is None for p in params):
            return None
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            raise UsageError(
                f"{type(self).__name__} met a sparse gradient of shape {tuple(params[0].shape)}; "
                "build the embedding with sparse=False."
            )
        grads = tuple(
            torch.zeros_like(p, dtype=state_dtype(p)) if p.grad is None else p.grad.to(state_dtype(p))
            for p in params
        )
        return Unit(params, grads, tuple(self.state[p] for p in params))

    def after_update(self, number: int, total: int) -> None:
        """Called by a training loop after the step of update `number` (1 to `total`) and the layers' own
        `after_update`, for what goes by the loop's count. Must depend on its arguments, groups and state
        alone.
        """

    def resets(self, total_steps: int, skipped: int = 0) -> tuple[int, ...]:
        """Updates of a training loop, 1 to `total_steps`, after which this optimizer drops its moments, so
        that a schedule may dip there. None by default.

        `skipped`: updates so far for which the loop did not call `step`. A rule that counts its own steps
        comes that many updates later from then on.
        """
        return ()

    def retain(self, parameters: Iterable[Tensor]) -> None:
        """Forget every parameter that is not among these, and its state: for layers that drop some in
        mid-training.

        Groups keep their places, if need be without parameters. Raises `UsageError`, changing nothing, if a
        unit would be torn apart.
        """
        kept = {id(p) for p in parameters}
        for group in self.param_groups:
            for unit in _units(group):
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
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [x for x, stays in zip(group[key], keep, strict=True) if stays]

    # ---- the ledger

    @classmethod
    def planned_state_elements(
        cls, role: str, shapes: Iterable[Sequence[int]], options: Mapping[str, Any] | None = None
    ) -> int:
        """Elements of state for parameters of these shapes, in the role's order, without creating anything.

        `options` are options that differ from the defaults, where they change the state (`variant`,
        `state_format`, `view`, ...). The `step` counters are not counted, here and in `planned_state_bytes`,
        `state_elements` and `state_bytes`. In 8 bits codes and scales are counted.
        """
        return sum(math.prod(shape) for shape, _ in cls._planned_state(role, shapes, options, torch.float32))

    @classmethod
    def planned_state_bytes(
        cls,
        role: str,
        shapes: Iterable[Sequence[int]],
        options: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> int:
        """Bytes of the same state, where `dtype` is that of the parameters."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        planned = cls._planned_state(role, shapes, options, wide)
        return sum(math.prod(shape) * stored.itemsize for shape, stored in planned)

    @classmethod
    def _planned_state(
        cls,
        role: str,
        shapes: Iterable[Sequence[int]],
        options: Mapping[str, Any] | None,
        dtype: torch.dtype,
    ) -> Iterator[tuple[Shape, torch.dtype]]:
        merged = {**option_defaults(cls), **(options or {})}
        listed = [tuple(int(d) for d in shape) for shape in shapes]
        size = unit_size(role, len(listed), where=f"planned state of {cls.__name__}")
        for i in range(0, len(listed), size):
            for layout in cls._stored_layouts(role, tuple(listed[i : i + size]), merged, dtype):
                yield from layout.values()

    def state_elements(self) -> int:
        """Elements of state that are there, without the `step` counters."""
        return sum(tensor.numel() for tensor in self._counted_state())

    def state_bytes(self) -> int:
        """Bytes of the storages behind the state (a shared storage once), without the `step` counters."""
        storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in self._counted_state())}
        return sum(storages.values())

    def step_flops(self) -> int:
        """FLOPs of one step over all parameters: the class's formula for its roles, 14 an element for
        built-in AdamW.
        """
        total = 0
        for group in self.param_groups:
            for unit in _units(group):
                counted = [matrices_of(tuple(p.shape), group.get("view")) for p in unit]
                shapes = tuple(shape for _, shape in counted)
                if group["role"] in self.roles:
                    total += counted[0][0] * self._unit_flops(group["role"], shapes, group)
                else:
                    total += ADAMW_FLOPS_PER_ELEMENT * sum(p.numel() for p in unit)
        return total

    def _counted_state(self) -> Iterator[Tensor]:
        for state in self.state.values():
            yield from (tensor for key, tensor in state.items() if key != "step")

    # ---- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """torch's, in which an option that is a function has the text "function MODULE.NAME" in its place.

        So it loads with `weights_only=True`; the function itself is given again when the optimizer is built.
        """
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({key: _function_text(value) for key, value in group.items() if callable(value)})
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, also through `torch.load(..., weights_only=True)`.

        torch's own method casts moments to the dtype of the parameter, which turns float32 moments of
        bfloat16 weights into bfloat16. Here values are copied into the tensors that exist, which keep their
        dtype; where a parameter has moved to another device since construction, its state follows. Options
        are the saved ones; functions stay those of this optimizer. Load hooks run, but see an empty "state".
        Raises `UsageError`, changing nothing, if groups, roles, state names or shapes differ, or if an option
        is a function on one side only.
        """
        mine, saved = self.param_groups, state_dict["param_groups"]
        if [len(g["params"]) for g in mine] != [len(g["params"]) for g in saved]:
            raise UsageError(
                f"the saved optimizer has groups of {[len(g['params']) for g in saved]} parameters, this one "
                f"of {[len(g['params']) for g in mine]}; build the optimizer from the same model and groups."
            )
        copies: list[tuple[dict[str, Tensor], str, Tensor, torch.device]] = []
        groups = []
        for number, (own_group, saved_group) in enumerate(zip(mine, saved, strict=True)):
            for option, here in (
                ("role", own_group["role"]),
                ("state_format", format_of(own_group)),
                ("view", own_group.get("view")),
            ):
                before = format_of(saved_group) if option == "state_format" else saved_group.get(option)
                if before != here and (option != "role" or "role" in saved_group):
                    raise UsageError(
                        f"parameter group {number} was saved with the {option} {before!r} and is {here!r} "
                        "here; build the groups as they were."
                    )
            groups.append(_with_own_functions(saved_group, own_group))
            for i, key in enumerate(saved_group["params"]):
                name, param = parameter_name(own_group, i), own_group["params"][i]
                state, new = self.state[param], state_dict["state"].get(key, {})
                require_match(
                    {f"{name}.{k}": t for k, t in state.items()},
                    {f"{name}.{k}": t for k, t in new.items()},
                    check_dtype=False,
                )
                copies.extend((state, k, new[k], param.device) for k in state)
        kept = self.state
        # the groups' options, and the hooks
        super().load_state_dict({**state_dict, "param_groups": groups, "state": {}})
        self.state = kept
        with torch.no_grad():
            for state, key, source, device in copies:
                if key != "step" and state[key].device != device:
                    state[key] = torch.empty_like(state[key], device=device)
                state[key].copy_(source)

    def named_state(self) -> dict[str, Tensor]:
        """Every state tensor under "{parameter name}.{state name}". Live tensors, not copies.

        Raises `UsageError` if the parameters were given without names.
        """
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            if "param_names" not in group:
                raise UsageError(
                    f"{type(self).__name__} was built from parameters without names, so its state cannot be "
                    "saved by name; pass model.named_parameters() or lowrise.param_groups(model, lr=...)."
                )
            for name, param in zip(group["param_names"], group["params"], strict=True):
                named.update({f"{name}.{key}": tensor for key, tensor in self.state[param].items()})
        return named

    def load_named_state(self, named: Mapping[str, Tensor]) -> None:
        """Copy `named` into the state. Raises `UsageError`, changing nothing, unless names, shapes and dtypes
        all agree.
        """
        own = self.named_state()
        require_match(own, named, check_dtype=True)
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(named[key])


def _function_text(value: Any) -> str:
    return f"function {value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _with_own_functions(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a saved group, with this optimizer's functions where the saved one had some."""
    options = dict(saved)
    for key, value in saved.items():
        was_function = isinstance(value, str) and value.startswith("function ")
        if was_function != callable(own.get(key)) and key in own:
            there, here = (value, _function_text(own[key])) if callable(own[key]) else (value, own[key])
            raise UsageError(
                f"the saved optimizer has {key} = {there!r}, this one {here!r}: build it with the same, a "
                "function cannot be saved."
            )
        if was_function and key in own:
            options[key] = own[key]
    return options


def update_by_adamw(group: Mapping[str, Any], units: Sequence[Unit], *, form: Form = "torch") -> None:
    """The rule for every role that a class does not move itself, with the group's lr, betas, eps and
    weight_decay.
    """
    members = [m for unit in units for m in zip(unit.params, unit.grads, unit.states, strict=True)]
    for chunk in chunked(members, lambda member: member[0].numel()):
        params, grads, states = zip(*chunk, strict=True)
        adamw_update_(
            list(params),
            list(grads),
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["step"].item() for s in states],  # on the CPU: no wait for the device
            lr=group["lr"],
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            form=form,
        )


def option_defaults(cls: type[Optimizer]) -> dict[str, Any]:
    """The constructor's options with their defaults, read from its signature, where they are written once."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 parameters, else float32: bfloat16 moments cannot decay by 0.999."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def buckets(items: Sequence[T], tensor_of: Callable[[T], Tensor]) -> Iterator[list[T]]:
    """Items whose tensors may be stacked (same shape, dtype, device), in chunks of at most
    MAX_BATCH_ELEMENTS.
    """
    by_kind: dict[tuple[Any, ...], list[T]] = {}
    for item in items:
        t = tensor_of(item)
        by_kind.setdefault((t.shape, t.dtype, t.device), []).append(item)
    for same in by_kind.values():
        yield from chunked(same, lambda item: tensor_of(item).numel())


def chunked(
    items: Sequence[T], elements_of: Callable[[T], int], limit: int | None = None
) -> Iterator[list[T]]:
    """Consecutive runs of at most `limit` (MAX_BATCH_ELEMENTS) elements, of one item at least."""
    chunk: list[T] = []
    elements = 0
    most = MAX_BATCH_ELEMENTS if limit is None else limit
    for item in items:
        if chunk and elements + elements_of(item) > most:
            yield chunk
            chunk, elements = [], 0
        chunk.append(item)
        elements += elements_of(item)
    if chunk:
        yield chunk


def decay_and_subtract_(
    params: list[Tensor], updates: list[Tensor], decay: float | list[Tensor] | None
) -> None:
    """p <- decay p - update, in the dtype of the update and rounded once to that of p. `decay` None means
    1.
    """
    narrow = params[0].dtype != updates[0].dtype
    targets = [p.to(updates[0].dtype) for p in params] if narrow else params
    if decay is not None:
        torch._foreach_mul_(targets, decay)
    torch._foreach_sub_(targets, updates)
    if narrow:
        torch._foreach_copy_(params, targets)


def _units(group: Mapping[str, Any]) -> Iterator[tuple[Tensor, ...]]:
    size, params = UNIT_SIZE[group["role"]], group["params"]
    for i in range(0, len(params), size):
        yield tuple(params[i : i + size])


def _num_matrices(param: Tensor, group: Mapping[str, Any]) -> int:
    return matrices_of(tuple(param.shape), group.get("view"))[0]


def _parts(group: Mapping[str, Any], units: list[Unit]) -> Iterable[list[Unit]]:
    """Units whose moments may be open at the same time."""
    if format_of(group) == "float32":
        return [units]
    return chunked(units, lambda unit: compressed_elements(unit.states), OPEN_ELEMENTS)


def _with_states(units: list[Unit], states: Sequence[dict[str, Tensor]]) -> list[Unit]:
    """The units with these states, given in the order of their parameters."""
    rest = iter(states)
    return [replace(unit, states=tuple(next(rest) for _ in unit.params)) for unit in units]


def _units_of_matrices(unit: Unit, matrices: Sequence[Tensor], view: str) -> list[Unit]:
    """A unit of one parameter as one unit for each of its matrices."""
    (grad,), (state,) = unit.grads, unit.states
    parts = zip(matrices, split(grad, view), split_state(state, len(matrices), view), strict=True)
    return [Unit((p,), (g,), (s,)) for p, g, s in parts]


def _zero_state(param: Tensor, stored: Stored) -> dict[str, Tensor]:
    state = {"step": torch.zeros((), dtype=torch.float32)}
    for key, (shape, dtype) in stored.items():
        if shape == tuple(param.shape):
            state[key] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        else:
            state[key] = torch.zeros(shape, dtype=dtype, device=param.device)
    return state
