"""What an optimizer refuses, in sentences that name the parameter and the remedy. All raise `UsageError`."""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError, did_you_mean
from lowrise.optim.engine.views import CHOICE, LEAST_DIMS

# Role -> number of parameters that a rule moves at once, and the dimensions of each (None: any).
UNIT_SIZE: dict[str, int] = {
    "matrix": 1,
    "factors": 2,
    "svd": 3,
    "other": 1,
    "embedding": 1,
    "head": 1,
}
UNIT_DIMS: dict[str, tuple[int, ...] | None] = {
    "matrix": (2,),
    "factors": (2, 2),
    "svd": (2, 1, 2),
    "other": None,
    "embedding": (2,),
    "head": (2,),
}

# Options that count products within an update, and the most that is taken: what is more stands still.
ITERATIONS = ("ns_steps", "iters", "steps", "power_iters", "power_iters_first")
MOST_ITERATIONS = 1000


def parameter_name(group: Mapping[str, Any], i: int) -> str:
    """The name of parameter i of a group, or a description where it was given without one."""
    names = group.get("param_names")
    return names[i] if names else f"parameter {i} of a group with role {group.get('role')!r}"


def unit_size(role: str, count: int, *, where: str) -> int:
    """Parameters in one unit of `role`; refuses an unknown role and a count that does not come out even."""
    if role not in UNIT_SIZE:
        raise UsageError(f"{where} was given the role {role!r}; choose one of {', '.join(UNIT_SIZE)}.")
    size = UNIT_SIZE[role]
    if count % size:
        order = {"factors": "[A0, B0, A1, B1, ...]", "svd": "[U0, s0, V0, U1, ...]"}[role]
        raise UsageError(
            f"{where} with role {role!r} was given {count} parameters, which is no multiple of {size}; "
            f"list them as {order}."
        )
    return size


def settle_role(group: dict[str, Any], number: int, roles: Collection[str], who: str) -> None:
    """Check the role of a group that states one. One without is "matrix" if all its parameters are 2-D; else
    "other", where the class `who` updates that itself (it has it in `roles`).
    """
    if "role" in group:
        if group["role"] not in UNIT_SIZE:
            raise UsageError(
                f"parameter group {number} has the role {group['role']!r}; "
                f"choose one of {', '.join(UNIT_SIZE)}."
            )
        return
    seen_as_matrices = group.get("view") is not None
    not_2d = next((i for i, p in enumerate(group["params"]) if p.ndim != 2 and not seen_as_matrices), None)
    group["role"] = "matrix" if not_2d is None or "other" not in roles else "other"
    if group["role"] not in roles:
        raise UsageError(
            f"{who} moves the roles {' and '.join(sorted(roles))}, and parameters given without a role are "
            'taken as dense matrices; give groups with a role, for example {"params": [A0, B0, A1, B1], '
            '"role": "factors"}, or use lowrise.param_groups(model, lr=...).'
        )
    if not_2d is not None and group["role"] == "matrix":
        raise UsageError(
            f"{parameter_name(group, not_2d)} has shape {tuple(group['params'][not_2d].shape)} but was "
            f"given to {who} without a role, where only 2-D matrices may be; put it into "
            f'a group with role="other" or with a view ({CHOICE}), or use '
            "lowrise.param_groups(model, lr=...)."
        )


Made = tuple[torch.Size, torch.dtype, torch.device]
"""What the state of a parameter was made for."""


def made_for(param: Tensor) -> Made:
    """Of the parameter as it is."""
    return param.shape, param.dtype, param.device


def refuse_changed(name: str, param: Tensor, made: Made) -> None:
    """Raise for a parameter that is not what its state was made for, or whose gradient does not fit it.
    Weights that became narrower over float32 moments may be.
    """
    shape, dtype, device = made
    if shape != param.shape:
        raise UsageError(
            f"{name} had shape {tuple(shape)} when the optimizer was built and has {tuple(param.shape)} "
            "now, so its moments do not fit: build the optimizer after resizing the model "
            "(resize_token_embeddings and the like)."
        )
    if param.device != device:
        raise UsageError(
            f"{name} was on {device} when the optimizer was built and is on {param.device} now, where its "
            "moments are not: build the optimizer after moving the model."
        )
    if (param.dtype == torch.float64) != (dtype == torch.float64) or not param.dtype.is_floating_point:
        raise UsageError(
            f"{name} had dtype {dtype} when the optimizer was built and has {param.dtype} now, so its "
            "moments have another precision: build the optimizer after converting the model."
        )
    if param.grad is not None and param.grad.shape != param.shape:
        raise UsageError(
            f"the gradient of {name} has shape {tuple(param.grad.shape)} and the parameter "
            f"{tuple(param.shape)}: it is left from before a change; call zero_grad() and compute it again."
        )


def check_params(group: Mapping[str, Any]) -> None:
    """Refuse parameters whose number, dtype, dimensions or ranks do not fit the group's role."""
    role, params = group["role"], group["params"]
    size, dims = unit_size(role, len(params), where="a parameter group"), UNIT_DIMS[role]
    for i, param in enumerate(params):
        name = parameter_name(group, i)
        if not param.dtype.is_floating_point:
            raise UsageError(
                f"{name} has dtype {param.dtype}; only floating-point parameters can be trained."
            )
        if dims is not None:
            _check_shape(name, tuple(param.shape), role, i % size, dims[i % size], group.get("view"))
    for i in range(0, len(params), size):
        ranks = [p.shape[-1] for p in params[i : i + size]] if size > 1 else []
        if len(set(ranks)) > 1:
            members = range(i, i + size)
            shapes = ", ".join(f"{parameter_name(group, j)} {tuple(params[j].shape)}" for j in members)
            raise UsageError(
                f"the members of one {role!r} unit have ranks {ranks} ({shapes}); "
                "their last dimensions must agree, W = A @ B.T."
            )


def _check_shape(
    name: str, shape: tuple[int, ...], role: str, place: int, dims: int, view: str | None
) -> None:
    """Refuse a shape that is no matrix of the role, or none in the group's view, or that is empty."""
    if view is not None and len(shape) < LEAST_DIMS[view]:
        raise UsageError(
            f"{name} has shape {shape}, and view={view!r} takes {LEAST_DIMS[view]} dimensions or more: "
            f"{CHOICE}."
        )
    if view is None and len(shape) != dims:
        remedy = f"say how it is one ({CHOICE}), or " if role == "matrix" and len(shape) > 2 else ""
        raise UsageError(
            f"{name} has shape {shape}, but place {place} of role {role!r} takes {dims} dimension(s); "
            f'{remedy}put it into a group with role="other".'
        )
    if 0 in shape:
        raise UsageError(
            f"{name} has shape {shape}, which has no elements to move as {role!r}; leave it out, or put it "
            'into a group with role="other".'
        )


def check_numbers(options: Mapping[str, Any], *, where: str) -> None:
    """Refuse learning rates, decays, eps and momenta outside their range, what is no plain number, options
    that are not finite, and iterations without end."""
    for key in ("lr", "weight_decay", "eps"):
        value = options.get(key, 0.0)
        if not isinstance(value, Real) or not 0.0 <= float(value) < math.inf:
            raise UsageError(
                f"{where} has {key} = {value!r}; it must be a finite number, 0 or more (a float, no tensor)."
            )
    betas, momentum = options.get("betas", (0.0, 0.0)), options.get("momentum", 0.0)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(map(_is_decay, betas)):
        raise UsageError(f"{where} has betas = {betas!r}; give two numbers, each at least 0 and below 1.")
    if not _is_decay(momentum):
        raise UsageError(f"{where} has momentum = {momentum!r}; it must be at least 0 and below 1.")
    for key, value in options.items():
        # a layer whose residual has no bound says so by inf
        numbers = (
            ()
            if key in ("params", "residual_norm")
            else value
            if isinstance(value, tuple | list)
            else (value,)
        )
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UsageError(f"{where} has {key} = {value!r}; it must be finite.")
    seed = options.get("seed")
    if isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        raise UsageError(f"{where} has seed = {seed}; it must have 64 bits.")
    for key in ITERATIONS:
        value = options.get(key)
        if isinstance(value, int) and value > MOST_ITERATIONS:
            raise UsageError(
                f"{where} has {key} = {value}; each is a product of matrices in every update, and more than "
                f"{MOST_ITERATIONS} end in none."
            )


def check_choices(group: Mapping[str, Any], who: type) -> None:
    """Refuse a value that the annotation of an option of `who`'s constructor, a `Literal`, does not list."""
    for option, choices in _choices(who).items():
        if option in group and group[option] not in choices:
            known = ", ".join(map(str, choices))
            raise UsageError(f"{who.__name__} has {option} = {group[option]!r}; choose one of {known}.")


@functools.cache
def _choices(who: type) -> dict[str, tuple[Any, ...]]:
    """Option -> its values, for the constructor's options that are annotated with `Literal`."""
    try:
        hints = typing.get_type_hints(who.__init__)  # type: ignore[misc]
    except NameError:  # an annotation of names that only a type checker imports
        return {}
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}


def check_gauge(group: Mapping[str, Any], option: str, *, who: str, remedy: str) -> None:
    """Refuse an option that chooses other factors of the same product, where these are another map."""
    if group.get("fixed_gauge"):
        raise UsageError(
            f"{who} has {option}, which replaces factors A, B by others of the same product A B^T; with the "
            f"layer's activation or residual (cola, dlr) that is another map: {remedy}."
        )


def check_known_options(
    options: Iterable[str], known: Collection[str], own: Collection[str], who: type
) -> None:
    """Refuse an option that the constructor `who` does not take; `known` are the names worth proposing."""
    for option in options:
        if option not in own:
            raise UsageError(
                f"{who.__name__} has no option {option!r}; {did_you_mean(option, sorted(known))}"
            )


def _is_decay(value: Any) -> bool:
    return isinstance(value, Real) and 0.0 <= float(value) < 1.0


def require_match(own: Mapping[str, Tensor], new: Mapping[str, Tensor], *, check_dtype: bool) -> None:
    """Refuse a saved state that differs in names, shapes or dtypes, listing the first differences."""
    wrong = [f"{key} is missing" for key in own if key not in new]
    wrong += [f"{key} is not expected" for key in new if key not in own]
    for key in own:
        if key in new and tuple(own[key].shape) != tuple(new[key].shape):
            wrong.append(f"{key} has shape {tuple(new[key].shape)} instead of {tuple(own[key].shape)}")
        elif key in new and check_dtype and own[key].dtype != new[key].dtype:
            wrong.append(f"{key} has dtype {new[key].dtype} instead of {own[key].dtype}")
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise UsageError(
            f"the saved optimizer state does not fit: {'; '.join(wrong[:8])}{more}. "
            "Build the optimizer with the same method, options and model as the saved one."
        )
