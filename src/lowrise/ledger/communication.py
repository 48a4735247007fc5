"""Bytes that ranks send, from shapes alone.

In one update one rank sends on average, with N ranks in C copies of S shards, k micro-batches and, in bytes,
P_b of shared weights in blocks and P_r outside as they travel, T of their gradients, D of the gradients of
copied parameters, O of shared and Q of copied weights that have owners:

    k (2 P_b + P_r + T) (S - 1) / S     gathers before each pass and its backward pass, sums of gradients
    k 2 (T / S) (C - 1) / C             sums over copies of the model
    2 D (N - 1) / N                     sums of copies' gradients, once an update
    3 O (S - 1) / S^2 + Q (S - 1) / S   to owners and back

A sum over n ranks is a ring's, 2 (n - 1) / n of its bytes. For copies alone S is N in the last line, and the
first two are absent.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from lowrise.distributed.sharding import is_sharded, shard_group
from lowrise.optim import Optimizer
from lowrise.optim.engine.units import units_of


def planned_communication(
    model: nn.Module,
    blocks: nn.Module,
    optimizer: Optimizer,
    *,
    ranks: int,
    passes: int,
    gathered_bytes: int | None = None,
    ranks_of_copy: int | None = None,
    by_rows: Collection[Tensor] | None = None,
    owned: Collection[Tensor] | None = None,
) -> int:
    """The sum of the lines above for a model that `ranks` ranks share; parameters in `blocks` are gathered
    twice a pass. `gathered_bytes`: of an element while it travels; None: its own.

    Before the ranks are there, say how they will share: `ranks_of_copy` (S) share the parameters `by_rows`,
    and units whose first parameter is in `owned` have an owner. None: what is so now.
    """
    if ranks == 1:
        return 0
    inside = {id(p) for p in blocks.parameters()}
    if by_rows is None:
        by_rows = {p for p in model.parameters() if is_sharded(p)}
    if owned is None:
        units = (unit for group in optimizer.param_groups for unit in units_of(group))
        owned = {unit[0] for unit in units if optimizer.ownership.owner(unit) is not None}
    rows = [p for p in model.parameters() if p in by_rows]
    copies = [p for p in model.parameters() if p not in by_rows and p.requires_grad]
    sent = 2 * sum(map(_bytes, copies)) * (ranks - 1) / ranks
    S = ranks_of_copy or (shard_group(rows[0]).size if rows else ranks)
    if rows:
        C = ranks // S
        gathers = sum((2 if id(p) in inside else 1) * _bytes(p, gathered_bytes) for p in rows)
        sums = sum(_bytes(p) for p in rows if p.requires_grad)
        sent += passes * ((gathers + sums) * (S - 1) / S + 2 * sums / S * (C - 1) / C)
    for unit in (unit for group in optimizer.param_groups for unit in units_of(group)):
        if unit[0] in owned:
            trips = 3 / S if unit[0] in by_rows else 1
            sent += trips * sum(map(_bytes, unit)) * (S - 1) / S
    return round(sent)


def _bytes(p: Tensor, element: int | None = None) -> int:
    return p.numel() * (element or p.element_size())
