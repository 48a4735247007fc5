"""Units, what a rule moves at once, and how rules go through many of them: stacked by shape, a bounded number
of elements at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowrise.linalg.precision import in_dtypes
from lowrise.linalg.stacks import stacked as stacked
from lowrise.optim.engine.options import UNIT_SIZE
from lowrise.optim.engine.views import split, split_state

Shape = tuple[int, ...]
Layout = dict[str, Shape]  # state name -> shape, for one parameter
T = TypeVar("T")

# Most elements that one batched call works on (one matrix at least). On a GPU few launches, with temporaries
# that stay small beside the model (256 MiB in float32). A CPU gains nothing from stacking large matrices, and
# is up to three times faster where the temporaries stay in its caches (docs/decisions.md); with 2^19 they
# stay below the activations too, which are gone by then, so that the planned peak holds.
BATCH_ELEMENTS = 1 << 26
BATCH_ELEMENTS_CPU = 1 << 19


def batch_elements(device: torch.device) -> int:
    """That number for a device."""
    return BATCH_ELEMENTS_CPU if device.type == "cpu" else BATCH_ELEMENTS


@dataclass(frozen=True)
class Unit:
    """Parameters that are moved together, with their gradients and state, in the role's order. A rule gets
    the gradients in the state's dtype.
    """

    params: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    states: tuple[dict[str, Tensor], ...]

    @property
    def step(self) -> int:
        """The number of this update of the unit, from 1."""
        return step_of(self.states[0])

    @property
    def elements(self) -> int:
        """Of its parameters."""
        return sum(p.numel() for p in self.params)


def step_of(state: Mapping[str, Tensor]) -> int:
    """A parameter's counter as a Python number: it lies on the CPU, so no device is asked, and no operation
    is dispatched.
    """
    number: Any = state["step"].tolist()
    return int(number)


def steps_of(states: Sequence[Mapping[str, Tensor]]) -> list[int] | list[Tensor]:
    """The counters of several parameters, as numbers; within `torch.compile`, where a number would be that of
    one update for ever, the tensors.
    """
    if torch.compiler.is_compiling():
        return [state["step"] for state in states]
    return [step_of(state) for state in states]


def units_of(group: Mapping[str, Any]) -> Iterator[tuple[Tensor, ...]]:
    """The parameters of a group, unit by unit."""
    size, params = UNIT_SIZE[group["role"]], group["params"]
    for i in range(0, len(params), size):
        yield tuple(params[i : i + size])


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 parameters, else float32: bfloat16 moments cannot decay by 0.999."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def narrow_elements(unit: Unit) -> int:
    """Elements of gradients that are narrower than the state."""
    pairs = zip(unit.params, unit.grads, strict=True)
    return sum(g.numel() for p, g in pairs if g.dtype != state_dtype(p))


def widened(units: Sequence[Unit]) -> list[Unit]:
    """The units with gradients in the state's dtype."""
    grads = [g for unit in units for g in unit.grads]
    dtypes = [state_dtype(p) for unit in units for p in unit.params]
    wide = iter(in_dtypes(grads, dtypes))
    return [Unit(unit.params, tuple(next(wide) for _ in unit.grads), unit.states) for unit in units]


def buckets(items: Sequence[T], tensor_of: Callable[[T], Tensor]) -> Iterator[list[T]]:
    """Items whose tensors may be stacked (same shape, dtype, device), a bounded number of elements at a
    time.
    """
    by_kind: dict[tuple[Any, ...], list[T]] = {}
    for item in items:
        t = tensor_of(item)
        by_kind.setdefault((t.shape, t.dtype, t.device), []).append(item)
    for (_, _, device), same in by_kind.items():
        yield from chunked(same, lambda item: tensor_of(item).numel(), batch_elements(device))


def together(items: Sequence[T], tensor_of: Callable[[T], Tensor]) -> Iterator[list[list[T]]]:
    """Buckets, as many at a time as stay within the same number of elements: what does not depend on shapes
    is done once for all of them.
    """
    by_kind: dict[tuple[Any, ...], list[list[T]]] = {}
    for bucket in buckets(items, tensor_of):
        t = tensor_of(bucket[0])
        by_kind.setdefault((t.dtype, t.device), []).append(bucket)
    for (_, device), same in by_kind.items():
        yield from chunked(
            same, lambda bucket: sum(tensor_of(x).numel() for x in bucket), batch_elements(device)
        )


def chunked(items: Sequence[T], elements_of: Callable[[T], int], limit: float) -> Iterator[list[T]]:
    """Consecutive runs of at most `limit` elements, of one item at least."""
    chunk: list[T] = []
    elements = 0
    for item in items:
        if chunk and elements + elements_of(item) > limit:
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
    targets = in_dtypes(params, [updates[0].dtype] * len(params))
    if decay is not None:
        torch._foreach_mul_(targets, decay)
    torch._foreach_sub_(targets, updates)
    if narrow:
        torch._foreach_copy_(params, targets)


def with_states(units: list[Unit], states: Sequence[dict[str, Tensor]]) -> list[Unit]:
    """The units with these states, given in the order of their parameters."""
    rest = iter(states)
    return [Unit(unit.params, unit.grads, tuple(next(rest) for _ in unit.params)) for unit in units]


def units_of_matrices(unit: Unit, matrices: Sequence[Tensor], view: str) -> list[Unit]:
    """A unit of one parameter as one unit for each of its matrices."""
    (grad,), (state,) = unit.grads, unit.states
    parts = zip(matrices, split(grad, view), split_state(state, len(matrices), view), strict=True)
    return [Unit((p,), (g,), (s,)) for p, g, s in parts]
