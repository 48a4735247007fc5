"""How a tensor that is not 2-D is a matrix, or several: the group option `view` of the role "matrix".

| view | tensor | matrices | state of the tensor |
|---|---|---|---|
| None | (m, n) | itself | as for (m, n) |
| "flatten" | (m, ...), a convolution (out, in, kh, kw) | one, m x (the rest) | as for that matrix |
| "stack" | (..., m, n), experts (E, m, n) | each p[e], m x n, by itself | E times as for (m, n), stacked |

A rule is handed 2-D views of the parameter, its gradient and its state, so what it writes in place is in the
tensors themselves. Where the strides of a parameter do not allow a view (a convolution in channels_last), it
is handed a copy, which is copied back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError

View = Literal["flatten", "stack"]
VIEWS: tuple[View, ...] = ("flatten", "stack")
LEAST_DIMS: dict[str | None, int] = {None: 2, "flatten": 2, "stack": 3}
CHOICE = (
    'view="flatten" takes (out, ...) as one matrix out x (the rest), as for convolutions, and view="stack" '
    "takes each (m, n) of (..., m, n) as a matrix, as for experts"
)


def check_view(group: Mapping[str, Any], *, where: str) -> None:
    """Raise `UsageError` for an unknown view, and for a view of another role than "matrix"."""
    view = group.get("view")
    if view is None:
        return
    if view not in VIEWS:
        raise UsageError(f"{where} has view = {view!r}; {CHOICE}.")
    if group["role"] != "matrix":
        raise UsageError(
            f'{where} has view = {view!r} and role {group["role"]!r}; only the role "matrix" has a view.'
        )


def matrices_of(shape: tuple[int, ...], view: str | None) -> tuple[int, tuple[int, ...]]:
    """The number of matrices in a tensor and their shape; without a view the tensor itself."""
    if view == "flatten":
        return 1, (shape[0], math.prod(shape[1:]))
    if view == "stack":
        return math.prod(shape[:-2]), shape[-2:]
    return 1, shape


def split(tensor: Tensor, view: str | None) -> tuple[Tensor, ...]:
    """The matrices of a parameter or gradient: views where its strides allow it, else copies."""
    if view is None:
        return (tensor,)
    count, shape = matrices_of(tuple(tensor.shape), view)
    return tensor.reshape(count, *shape).unbind() if view == "stack" else (tensor.reshape(shape),)


def as_matrices(group: Mapping[str, Any], matrices: Mapping[int, tuple[Tensor, ...]]) -> dict[str, Any]:
    """What a rule is handed for a group with a view: its matrices (`id` of a parameter -> its own) for its
    tensors, NAME[e] for the names of a stack's, and the group itself as "viewed_group".
    """
    seen = {**group, "params": [m for p in group["params"] for m in matrices[id(p)]], "viewed_group": group}
    if "param_names" in group:
        seen["param_names"] = [
            f"{name}[{e}]" if group["view"] == "stack" else name
            for name, p in zip(group["param_names"], group["params"], strict=True)
            for e in range(len(matrices[id(p)]))
        ]
    return seen


def split_state(state: dict[str, Tensor], count: int, view: str | None) -> list[dict[str, Tensor]]:
    """The state of each matrix, as views. `step` belongs to the parameter and is the same tensor in all."""
    if view != "stack":
        return [state]
    parts = {key: tensor.unbind() for key, tensor in state.items() if key != "step"}
    return [{"step": state["step"], **{k: rows[e] for k, rows in parts.items()}} for e in range(count)]


def write_back(param: Tensor, matrices: tuple[Tensor, ...]) -> None:
    """Copy the matrices into the parameter, unless they are views of it."""
    if matrices[0].untyped_storage().data_ptr() != param.untyped_storage().data_ptr():
        param.copy_(torch.stack(matrices).reshape(param.shape))
