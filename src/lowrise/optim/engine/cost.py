"""What an optimizer's state and step cost: planned from shapes alone, and measured."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.distributed.sharding import local
from lowrise.optim.engine.hyperball import ball_flops, ball_layout
from lowrise.optim.engine.options import unit_size
from lowrise.optim.engine.product_decay import decays_product, product_decay_flops
from lowrise.optim.engine.state_dict import Saved
from lowrise.optim.engine.state_formats import Stored, format_of, stored_layout
from lowrise.optim.engine.units import Layout, Shape, state_dtype, units_of
from lowrise.optim.engine.views import matrices_of
from lowrise.optim.rules.adamw import ADAMW_FLOPS_PER_ELEMENT, adamw_layout


class Counted(Saved):
    """The part of `lowrise.optim.Optimizer` that counts. The built-in AdamW moves what is in no role of the
    class.
    """

    roles: ClassVar[frozenset[str]] = frozenset()

    # ---- what a subclass writes

    @classmethod
    @abstractmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        """State of one unit of a role in `roles`: per parameter its names and shapes, without `step`."""

    @classmethod
    @abstractmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        """FLOPs of one step for one unit of a role in `roles`."""

    # ---- what is stored

    @classmethod
    def _stored_layouts(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any], dtype: torch.dtype
    ) -> tuple[Stored, ...]:
        """The class's layout, for the matrices of the view, in the format; `dtype` where that is float32."""
        view = options.get("view")
        counted = [matrices_of(shape, view) for shape in shapes]
        inner = tuple(shape for _, shape in counted)
        if role in cls.roles:
            own = zip(cls._state_layout(role, inner, options), ball_layout(role, inner, options), strict=True)
            layouts = tuple({**layout, **radius} for layout, radius in own)
        else:
            layouts = adamw_layout(inner)
        if view == "stack":
            layouts = tuple(
                {name: (count, *shape) for name, shape in layout.items()}
                for (count, _), layout in zip(counted, layouts, strict=True)
            )
        return tuple(stored_layout(layout, format_of(options), dtype) for layout in layouts)

    def layouts(self, group: Mapping[str, Any], unit: Sequence[Tensor]) -> tuple[Stored, ...]:
        """What is stored for the parameters of one unit of a group."""
        shapes = tuple(tuple(p.shape) for p in unit)
        return self._stored_layouts(group["role"], shapes, group, state_dtype(unit[0]))

    # ---- counts

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

    def planned_bytes_here(self) -> int:
        """Bytes of this rank's state by each class's formula over roles, shapes, options and owners."""
        total = 0
        for group in self.param_groups:
            for unit in units_of(group):
                if self.ownership.is_elsewhere(unit):
                    continue
                owned = self.ownership.owner(unit) is not None
                held = tuple(tuple(p.shape if owned else local(p).shape) for p in unit)
                layouts = self._stored_layouts(group["role"], held, group, state_dtype(unit[0]))
                total += sum(math.prod(shape) * d.itemsize for lay in layouts for shape, d in lay.values())
        return total

    def step_flops(self) -> int:
        """FLOPs of one step over all parameters: the class's formula for its roles, 14 an element for
        built-in AdamW.
        """
        return sum(self._flops_of(group, unit) for group in self.param_groups for unit in units_of(group))

    def _flops_of(self, group: Mapping[str, Any], unit: Sequence[Tensor]) -> int:
        counted = [matrices_of(tuple(p.shape), group.get("view")) for p in unit]
        if group["role"] not in self.roles:
            return ADAMW_FLOPS_PER_ELEMENT * sum(p.numel() for p in unit)
        shapes = tuple(shape for _, shape in counted)
        rule = self._unit_flops(group["role"], shapes, group) + ball_flops(group["role"], shapes, group)
        decay = product_decay_flops(shapes) if decays_product(group) else 0
        return counted[0][0] * (rule + decay)

    def _counted_state(self) -> Iterator[Tensor]:
        for state in self.state.values():
            yield from (local(tensor) for key, tensor in state.items() if key != "step")


def option_defaults(cls: type[Counted]) -> dict[str, Any]:
    """The constructor's options with their defaults, read from its signature, where they are written once."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
