"""The base of rules that update one matrix by a direction: a method writes the mathematics, and nothing else.

Per matrix W (m x n) with gradient G, state S, learning rate lr, at its update t:

1. U, S <- direction(G, S)                             the method
2. W <- W (1 - lr wd)
3. W <- W - lr s U                                     s = step_scale(m, n), 1 by default

or, where the group has `hyperball`, along U on the sphere of fixed norm (`hyperball.py`).

Matrices of one shape and one t are stacked, a bounded number of elements at a time, so that `direction` sees
(batch, m, n); a method that writes `directions` sees those of several shapes at once. Everything else comes
from `Optimizer`: groups and roles, formats of state, views, sharding, the ledger, checkpoints. See
docs/extending.md for a whole method in one file.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import BALL_ROLES, RADIUS, holds_norm, pairs_step_, step_
from lowrise.optim.engine.units import (
    Layout,
    Shape,
    Unit,
    batch_elements,
    chunked,
    stacked,
    step_of,
    together,
)

Step = tuple[Tensor, Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Matrices:
    """Matrices of one shape at one update: gradients, which are not to be written, and states."""

    grads: list[Tensor]
    states: list[dict[str, Tensor]]

    @property
    def names(self) -> list[str]:
        """Those of `state_shapes`."""
        return [name for name in self.states[0] if name not in ("step", RADIUS)]

    def state(self, name: str) -> list[Tensor]:
        """One entry of every matrix's state; to write in place."""
        return [state[name] for state in self.states]

    def stacked_state(self, name: str) -> Tensor:
        """The same as (batch, ...): a copy, but of one matrix alone."""
        return stacked(self.state(name))


def gradients(batches: Iterable[Matrices]) -> list[Tensor]:
    """Those of every matrix, in turn."""
    return [grad for batch in batches for grad in batch.grads]


def states(batches: Iterable[Matrices], name: str) -> list[Tensor]:
    """One entry of the state of every matrix, in turn."""
    return [tensor for batch in batches for tensor in batch.state(name)]


class MatrixOptimizer(Optimizer):
    """Updates along `direction` for the class's `roles`; every other role by the built-in AdamW.

    A subclass has a constructor `(params, lr=..., *, option=..., weight_decay=0.0)` that hands
    `self.options(locals())` on, and writes `direction` (or `directions`), `state_shapes` where it keeps
    state, and `matrix_flops`. Of the roles "factors" and "svd" every 2-D parameter is taken as a matrix of
    its own.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters.
        defaults: The constructor's options; each may be overridden by a group.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix"})
    ball_roles: ClassVar[frozenset[str]] = BALL_ROLES

    uses_step: ClassVar[bool] = True
    """Whether `direction` looks at `step`. A class that does not is handed 0: matrices at different updates
    are stacked together, and `torch.compile` can follow its step.
    """

    def __init_subclass__(cls, **words: Any) -> None:
        """A class that writes `direction` alone is moved by it, also where its base writes `directions`."""
        super().__init_subclass__(**words)
        if "direction" in vars(cls) and "directions" not in vars(cls):
            cls.directions = MatrixOptimizer.directions  # type: ignore[method-assign]

    # --- what a method writes -----------------------------------------------------------------------------

    def direction(self, G: Tensor, state: dict[str, Tensor], options: Mapping[str, Any], step: int) -> Tensor:
        """U (batch, m, n), a new tensor, for gradients G (batch, m, n), which are not to be written.

        state: each name of `state_shapes`, stacked (batch, ...); what is written into it in place is kept.
        options: the group's, `role` among them.
        step: the number of this update for these matrices, from 1.
        """
        raise NotImplementedError(f"{type(self).__name__} writes neither direction nor directions")

    def directions(
        self, batches: Sequence[Matrices], options: Mapping[str, Any], step: int
    ) -> Iterable[Tensor]:
        """U (m, n) of each matrix of the batches in turn, new tensors; by default `direction`'s, one batch
        after the other.

        A class that writes this one instead does once for all shapes what does not depend on them: the
        number of operations then grows little with the shapes.
        """
        for batch in batches:
            state = {name: batch.stacked_state(name) for name in batch.names}
            U = self.direction(stacked(batch.grads), state, options, step)
            if len(batch.states) > 1:  # one alone was seen, not copied
                for name in batch.names:
                    torch._foreach_copy_(batch.state(name), list(state[name].unbind()))
            yield from U.unbind()

    @classmethod
    def state_shapes(cls, m: int, n: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one matrix's state, which starts at zero; none by default."""
        return {}

    def start_state(self, state: dict[str, Tensor], index: int) -> None:
        """Write start values other than zero into one matrix's state, in place. `index` numbers the matrices
        of the optimizer from 0: with `lowrise.rng.counter_normal` it gives each its own random numbers.
        """

    @classmethod
    def step_scale(cls, m: int, n: int, options: Mapping[str, Any]) -> float:
        """s of step 3."""
        return 1.0

    @classmethod
    @abstractmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        """FLOPs of the steps 1 to 3 for one matrix."""

    # --- what follows from it -----------------------------------------------------------------------------

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        options = {**options, "role": role}
        return tuple(cls.state_shapes(*_matrix(shape), options) for shape in shapes)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        options = {**options, "role": role}
        return sum(cls.matrix_flops(*_matrix(shape), options) for shape in shapes)

    def _start_state(
        self, group: dict[str, Any], param: Tensor, index: int, state: dict[str, Tensor]
    ) -> None:
        self.start_state(state, index)

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        decay = 1.0 - group["lr"] * group["weight_decay"] if group["weight_decay"] else None
        if group["role"] == "factors" and holds_norm(group):
            most = batch_elements(units[0].params[0].device)
            for part in chunked(units, lambda unit: unit.elements, most):
                found = {id(p): u for bucket in self._steps(group, part) for p, u, _ in bucket}
                pairs_step_(group, part, [(found[id(A)], found[id(B)]) for A, B in (u.params for u in part)])
            return
        for moved in self._steps(group, units):
            params, updates, states = zip(*moved, strict=True)
            step_(group, params, updates, states, decay)

    def _steps(self, group: dict[str, Any], units: list[Unit]) -> Iterator[list[Step]]:
        """For each matrix lr s U, with its parameter and state; matrices of one t, a bounded number of
        elements at a time.
        """
        members = [m for unit in units for m in zip(unit.params, unit.grads, unit.states, strict=True)]
        by_step: dict[int, list[tuple[Tensor, Tensor, dict[str, Tensor]]]] = {}
        for member in members:
            by_step.setdefault(step_of(member[2]) if self.uses_step else 0, []).append(member)
        for step, same in by_step.items():
            for chunk in together(same, lambda member: member[0]):
                batches = [
                    Matrices([grad for _, grad, _ in bucket], [state for *_, state in bucket])
                    for bucket in chunk
                ]
                updates = list(self.directions(batches, group, step))
                params, _, states = zip(*(member for bucket in chunk for member in bucket), strict=True)
                rates = [group["lr"] * self.step_scale(*_matrix(p.shape), group) for p in params]
                torch._foreach_mul_(updates, rates)
                yield list(zip(params, updates, states, strict=True))


def _matrix(shape: Iterable[int]) -> tuple[int, int]:
    m, n = shape
    return m, n
