"""Sums of gradients over ranks, in buckets, while the backward pass goes on.

Every rank's loss is its part of the mean over the global batch (the sum over its tokens, divided by the
number of all), so gradients are summed, not averaged.

1. Parameters in the order in which their gradients are expected (last layer first) are put into buckets of
   one dtype and device, of at most `BUCKET_BYTES` each (a larger parameter has its own). The layout is a
   function of the list alone: of nothing that was measured in an earlier update.
2. Within the block of `GradientSum.over_ranks` a backward pass is the last of its update. When the gradients
   of a bucket are complete they are copied into one flat tensor, `p.grad` becomes a view of it, and its sum
   over ranks begins. Buckets begin in their order on every rank.
3. The end of the block begins what is left (gradients that did not come count as zeros in the sum, and stay
   None) and waits for all.

A parameter has a gradient on all ranks or on none: the ranks run the same graph.

Why not `DistributedDataParallel`: docs/decisions.md. Hooks live as long as the block, so parameters that
layers drop or exchange in mid-run need no care.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrise.distributed.sharding import is_sharded, local, shard_group
from lowrise.distributed.world import World, lost_ranks_explained

BUCKET_BYTES = 25 * 2**20  # as torch's DistributedDataParallel


@dataclass
class _Bucket:
    params: list[Tensor]
    waiting: set[int] = field(default_factory=set)
    """ids of the parameters whose gradient has not come."""
    flat: Tensor | None = None
    work: dist.Work | None = None


@dataclass
class GradientSum:
    """Sums gradients over the ranks of `world`, and counts what that took."""

    world: World
    bucket_bytes: int = BUCKET_BYTES
    payload_bytes: int = 0
    """Handed to all-reduce in the last update, by one rank."""
    wait_seconds: float = 0.0
    """Time that the last update waited for sums after its backward pass; on a CPU alone."""

    @property
    def sent_bytes(self) -> int:
        """Sent by one rank for it, in a ring."""
        return 2 * (self.world.size - 1) * self.payload_bytes // self.world.size

    @contextmanager
    def over_ranks(self, parameters: Iterable[Tensor], device: torch.device) -> Iterator[None]:
        """Within the block, one backward pass; after it every `p.grad` is the sum over ranks.

        Parameters that ranks share by rows are left to FSDP2.
        """
        if self.world.size == 1:
            yield
            return
        summed = [p for p in parameters if p.requires_grad and not is_sharded(p)]
        buckets = list(layout(summed, self.bucket_bytes))
        started: list[_Bucket] = []
        handles = []
        for bucket in buckets:
            arrived = _arrival(buckets, bucket, started)
            handles += [p.register_post_accumulate_grad_hook(arrived) for p in bucket.params]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        began = time.perf_counter()
        with lost_ranks_explained(self.world):
            for bucket in buckets[len(started) :]:
                _begin(bucket)
            for bucket in buckets:
                assert bucket.work is not None
                bucket.work.wait()
        self.wait_seconds = time.perf_counter() - began if device.type == "cpu" else 0.0
        self.payload_bytes = sum(b.flat.nbytes for b in buckets if b.flat is not None)


def layout(parameters: Sequence[Tensor], bucket_bytes: int) -> Iterator[_Bucket]:
    """Step 1."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        by_kind.setdefault((p.dtype, p.device), []).append(p)
    for same in by_kind.values():
        current: list[Tensor] = []
        size = 0
        for p in same:
            if current and size + p.nbytes > bucket_bytes:
                yield _Bucket(current, {id(q) for q in current})
                current, size = [], 0
            current.append(p)
            size += p.nbytes
        yield _Bucket(current, {id(q) for q in current})


def _arrival(buckets: list[_Bucket], bucket: _Bucket, started: list[_Bucket]) -> Callable[[Tensor], None]:
    """Step 2: what the hook of each parameter of `bucket` does."""

    def arrived(param: Tensor) -> None:
        bucket.waiting.discard(id(param))
        while len(started) < len(buckets) and not buckets[len(started)].waiting:
            _begin(buckets[len(started)])
            started.append(buckets[len(started)])

    return arrived


@torch.no_grad()
def _begin(bucket: _Bucket) -> None:
    """Copy the gradients into one tensor, leave views in their places, and begin the sum."""
    params = bucket.params
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in params])
    for p, view in zip(params, flat.split([p.numel() for p in params]), strict=True):
        if p.grad is not None:
            p.grad = view.view_as(p)
    bucket.flat = flat
    bucket.work = dist.all_reduce(flat, async_op=True)


@torch.no_grad()
def clip_gradients_(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale gradients so that their common norm is at most `limit` (inf: any); the norm before (0-dim).

    As `torch.nn.utils.clip_grad_norm_`, also where ranks share some parameters by rows and have copies of
    others, whose gradients are counted once.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    shared = [p for p in with_gradient if is_sharded(p)]
    if not shared:
        return nn.utils.clip_grad_norm_(with_gradient, limit)
    rows = [local(p.grad) for p in shared if p.grad is not None]
    copies = [p.grad for p in with_gradient if p.grad is not None and not is_sharded(p)]
    square = torch.stack(torch._foreach_norm(rows)).square().sum()
    dist.all_reduce(square, group=shard_group(shared[0]).group)
    if copies:
        square += torch.stack(torch._foreach_norm(copies)).square().sum()
    norm = square.sqrt()
    torch._foreach_mul_(rows + copies, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
