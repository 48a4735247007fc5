"""The average of a run's last weights (`[ema]`), beside the weights.

With W the weights after an update, E the average, H the horizon, l the share of the average:

1. after update `start`     E <- W
2. after each later update  E <- E + (W - E) / H
3. evaluated, exported      (1 - l) W + l E

As in modded-nanogpt's track 3 (records 45 and 46), which leaves the embedding out; here every trainable
parameter is averaged. E is float32, sharded as its parameter is, and read by nothing in training: losses and
weights are those of a run without it, to the last bit.

Factors are averaged as they are stored. What rewrites them in another basis (a rebalancing, LORO's exact
step, LoRA's merge, a change of ranks) would make a mean of two bases, so there E begins anew for these
parameters. A mean lies inside the surface that an optimizer keeps weights on, so after step 3 it is brought
back: U and V of TSVD are made orthonormal, and W or A B^T of fixed norm (`hyperball`) is scaled to the norm
of the last weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowrise.checkpoint import Checkpoint
from lowrise.config import RunConfig
from lowrise.config.sections import EmaSection
from lowrise.config.values import share_or_count
from lowrise.distributed import World
from lowrise.distributed.fsdp import reshard
from lowrise.distributed.sharding import local, whole, whole_parameters
from lowrise.errors import UsageError
from lowrise.layers import LowRankLayer
from lowrise.linalg.polar import polar_svd
from lowrise.optim import OPTIMIZERS, Optimizer
from lowrise.optim.engine.hyperball import holds_norm
from lowrise.optim.engine.options import UNIT_SIZE
from lowrise.runs.build import groups_of

PART = "ema"
"""Name of the average among the parts of a checkpoint."""


@dataclass(frozen=True)
class Tail:
    """`[ema]` with every value settled."""

    start: int
    horizon: int
    blend: float

    @classmethod
    def of(cls, section: EmaSection, steps: int) -> Self | None:
        """None where no average is asked for."""
        if section.start is None:
            return None
        start = max(1, share_or_count(section.start, steps))
        horizon = section.horizon or max(1, (steps - start) // 5)
        return cls(start, horizon, 0.6 if section.blend is None else section.blend)


class TailAverage:
    """E of a run that trains."""

    def __init__(self, tail: Tail, optimizer: Optimizer) -> None:
        self.tail, self.optimizer = tail, optimizer
        self.tensors: dict[str, Tensor] = {}
        """E by the names of the parameters; empty before the start."""

    @torch.no_grad()
    def after_update(self, number: int, rewritten: Collection[Tensor]) -> None:
        """Steps 1 and 2. `rewritten`: parameters that are in another basis than before this update. Nothing
        waits for the device."""
        if number < self.tail.start:
            return
        parameters = self._parameters()
        anew = {id(p) for p in rewritten}
        going_on: list[tuple[Tensor, Tensor]] = []
        for name, p in parameters.items():
            average = self.tensors.get(name)
            if average is None or average.shape != p.shape or id(p) in anew:
                self.tensors[name] = _copy(p)
            else:
                going_on.append((local(average), local(p.detach()).to(average.dtype)))
        self.tensors = {name: self.tensors[name] for name in parameters}
        if going_on:
            averages, weights = map(list, zip(*going_on, strict=True))
            torch._foreach_lerp_(averages, weights, 1.0 / self.tail.horizon)

    def load(self, checkpoint: Checkpoint, world: World) -> None:
        """Take over a saved E; where there is none, E begins with the next update. Collective."""
        self.tensors = {}
        if PART in checkpoint.parts and checkpoint.step >= self.tail.start:
            self.tensors = {name: _copy(p) for name, p in self._parameters().items()}
            checkpoint.load_into(PART, self.tensors, world)

    @contextmanager
    def in_the_model(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the weights of step 3; afterwards its own, to the last bit. Takes
        the memory of the gradients, which are not there then. Collective."""
        reshard(model)
        kept = {
            name: local(p.detach()).clone() for name, p in model.named_parameters() if name in self.tensors
        }
        try:
            _blend_(model, self.tensors, self.tail.blend, type(self.optimizer), self.optimizer.param_groups)
            yield
        finally:
            reshard(model)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if name in kept:
                        local(p.detach()).copy_(kept[name])

    def _parameters(self) -> dict[str, Tensor]:
        """The optimizer's, which are this rank's rows even while the model holds gathered ones."""
        return {
            name: p
            for group in self.optimizer.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }


def _copy(p: Tensor) -> Tensor:
    """In float32, or float64 for a parameter in float64; sharded as it is."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    return torch.empty_like(p, dtype=dtype, requires_grad=False).copy_(p.detach())


@torch.no_grad()
def _blend_(
    model: nn.Module,
    average: Mapping[str, Tensor],
    share: float,
    optimizer: type[Optimizer],
    groups: Iterable[Mapping[str, Any]],
) -> None:
    """Step 3, in place, and back to where `optimizer` keeps the weights of `groups`. Collective."""
    fixed = [[model.get_parameter(name) for name in names] for names in _of_fixed_norm(groups)]
    norms = [_norm(unit) for unit in fixed]
    for name, p in model.named_parameters():
        if name in average:
            own, E = local(p.detach()), local(average[name])
            own.copy_(own.to(E.dtype).lerp(E.to(own.device), share))
    for unit, norm in zip(fixed, norms, strict=True):
        factor = (norm / _norm(unit)) ** (1.0 / len(unit))
        for p in unit:
            local(p.detach()).mul_(factor.to(p.dtype))
    for layer in model.modules():
        if optimizer.keeps_orthonormal and isinstance(layer, LowRankLayer) and layer.role == "svd":
            with whole_parameters(layer):
                U, _, V = layer.role_parameters()
                for X in (U, V):
                    X.copy_(polar_svd(X.double()))


def _of_fixed_norm(groups: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The names of each matrix, and of each pair, whose norm the optimizer fixes."""
    for group in filter(holds_norm, groups):
        # An optimizer replaces the (name, tensor) pairs that it is given by tensors and "param_names".
        names = group.get("param_names") or [name for name, _ in group["params"]]
        size = UNIT_SIZE[group["role"]]
        for i in range(0, len(names), size):
            yield tuple(names[i : i + size])


def _norm(unit: Sequence[Tensor]) -> Tensor:
    """||W||_F of a matrix, ||A B^T||_F of a pair, in float64."""
    wide = [whole(p.detach()).double() for p in unit]
    if len(wide) == 1:
        return torch.linalg.vector_norm(wide[0])
    A, B = wide
    return ((A.mT @ A) * (B.mT @ B)).sum().sqrt()


def take_average_(model: nn.Module, config: RunConfig, checkpoint: Checkpoint) -> None:
    """Blend a checkpoint's average into the model that has its weights. `UsageError` where it has none."""
    tail = Tail.of(config.ema, config.train.steps)
    if tail is None or PART not in checkpoint.parts:
        why = (
            "its recipe has no [ema]"
            if tail is None
            else f"it begins with update {tail.start}, and the checkpoint is of update {checkpoint.step}"
        )
        raise UsageError(f"--weights ema: {checkpoint.path} holds no average, {why}. Take --weights raw.")
    optimizer, groups = OPTIMIZERS[config.optimizer.name], groups_of(config, model)
    _blend_(model, checkpoint.parts[PART], tail.blend, optimizer, groups)
