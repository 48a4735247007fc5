"""Planned bytes of what stays on the device between steps: weights, gradients, optimizer state. From shapes
alone, so a meta model will do.

Activations are in `ledger.activations`: they depend on the batch, the kernels and the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from lowrise.layers.roles import group_tensors


class PlansState(Protocol):
    """What is asked of an optimizer class: how many bytes of state it keeps for a group."""

    @classmethod
    def planned_state_bytes(
        cls,
        role: str,
        shapes: Sequence[tuple[int, ...]],
        options: Mapping[str, Any],
        *,
        dtype: torch.dtype,
    ) -> int: ...


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes by purpose, for a model that is not sharded."""

    weights_bytes: int
    """All parameters (shared ones once) and buffers, in their own dtypes."""
    gradients_bytes: int
    """One gradient for each trainable parameter, in the parameter's dtype."""
    state_bytes: int
    """Optimizer state."""

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.weights_bytes + self.gradients_bytes + self.state_bytes


def plan_memory(
    model: nn.Module, groups: Sequence[dict[str, Any]], optimizer_class: type[PlansState]
) -> MemoryPlan:
    """Bytes that training `groups` of `model` by `optimizer_class` keeps; the options of the groups
    (`state_format`, ...) count, others have their defaults.
    """
    tensors = [*model.parameters(), *model.buffers()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    state_bytes = 0
    for group in groups:
        members = group_tensors(group)
        shapes = [tuple(t.shape) for t in members]
        state_bytes += optimizer_class.planned_state_bytes(
            group["role"], shapes, group, dtype=members[0].dtype
        )
    return MemoryPlan(
        weights_bytes=sum(t.numel() * t.element_size() for t in tensors),
        gradients_bytes=sum(p.numel() * p.element_size() for p in trainable),
        state_bytes=state_bytes,
    )
