"""Ranks that change during training.

A layer decides and changes itself (`AdaptiveRankLayer.change_rank`); here the optimizer follows. Everything
depends on the weights, the update's number and the run's seed alone, so a resumed run does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers.base import AdaptiveRankLayer, is_adaptive
from lowrise.layers.ranks import RankChange
from lowrise.optim import Optimizer
from lowrise.optim.engine.exchange import Exchange, exchange
from lowrise.rng import name_seed


@dataclass(frozen=True)
class RankEvent:
    """Ranks of the layers that had an event, before and after."""

    before: dict[str, int]
    after: dict[str, int]

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def __str__(self) -> str:
        old, new = ([*ranks.values()] for ranks in (self.before, self.after))
        return (
            f"ranks of {len(new)} layers: {sum(old) / len(old):.1f} -> {sum(new) / len(new):.1f} on average, "
            f"{min(new)} to {max(new)} now"
        )


def check_adaptive(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse adaptive layers whose optimizer does not keep U and V orthonormal: their s would not be the
    energy."""
    for name, _ in _adaptive_layers(model):
        if not type(optimizer).keeps_orthonormal:
            raise UsageError(
                f"{name} chooses its rank by the energy of s, which needs orthonormal factors, and "
                f"{type(optimizer).__name__} does not keep them so: set layer.energy = 0, or use TSVD."
            )


def change_ranks(
    model: nn.Module, optimizer: Optimizer, number: int, total: int, seed: int
) -> RankEvent | None:
    """Let every layer choose its columns after update `number` of `total`; None where none had an event."""
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for name, layer in _adaptive_layers(model):
        generator = torch.Generator().manual_seed(name_seed(seed, f"{name}:rank:{number}"))
        old, rank = layer.role_parameters(), layer.rank
        change = layer.change_rank(number, total, generator)
        if change is not None:
            before[name], after[name] = rank, layer.rank
            follow(optimizer, old, layer.role_parameters(), change)
    return RankEvent(before, after) if after else None


def follow(
    optimizer: Optimizer, old: tuple[Tensor, ...], new: tuple[Tensor, ...], change: RankChange
) -> None:
    """Take U, s, V `new` for `old`, and do with the columns of their state what `change` did with theirs.

    First moments of U and s change sign with their column; second moments and counters have none.
    """

    def exchange_of(place: int) -> Exchange:
        def carry(name: str, tensor: Tensor) -> Tensor:
            return change.carried(tensor, signed=place < 2 and name == "exp_avg")

        return Exchange(old[place], new[place], carry)

    exchange(optimizer, [exchange_of(place) for place in range(3)])


def _adaptive_layers(model: nn.Module) -> Iterator[tuple[str, AdaptiveRankLayer]]:
    return ((name, m) for name, m in model.named_modules() if is_adaptive(m))
