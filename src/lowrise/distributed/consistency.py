"""Ranks keep copies of weights and state, which must stay equal: compared by checksums, in one reduction.
Where copies of a model are shared by rows (HSDP), the same rows of all copies are.

The checksum of a tensor is the sum of its bits read as whole numbers, modulo 2^64: the order of the sum does
not matter, and one changed bit changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowrise.distributed.sharding import is_sharded, local, shard_group
from lowrise.distributed.world import World
from lowrise.errors import LowriseError, UsageError

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_same_work(world: World, **facts: str) -> None:
    """Raise `UsageError` at every rank unless all ranks have the same recipe, text, ...: texts by their
    name."""
    for name, text in facts.items():
        if _differing(world, [_number(text)]):
            raise UsageError(
                f"The ranks do not have the same {name} (rank {world.rank}: {text}): start all of them with "
                "the same command, on the same files."
            )


def check_alike(world: World, tensors: Mapping[str, Tensor], when: str) -> None:
    """Raise `LowriseError` at every rank, naming the first such tensor, unless all ranks have the same
    bits."""
    if world.size == 1:
        return
    shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
    differing = ["the list of tensors"] if _differing(world, [_number(shapes)]) else []
    if not differing:
        names = list(tensors)
        places = _differing(world, _by_shard(tensors, checksums({n: local(t) for n, t in tensors.items()})))
        differing = [names[i] for i in dict.fromkeys(place % len(names) for place in places)]
    if differing:
        raise LowriseError(
            f"The ranks have drifted apart: {when}, {differing[0]} is not the same on all of them "
            f"({len(differing)} of {len(tensors)} tensors), so nothing is saved. Either their hardware or "
            "software differs, or one of them computes wrongly: compare the machines, set "
            "train.deterministic = true, and start again from the newest checkpoint."
        )


@torch.no_grad()
def checksums(tensors: Mapping[str, Tensor]) -> list[int]:
    """One number a tensor; one wait a device."""
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for place, tensor in enumerate(tensors.values()):
        whole = tensor.detach().reshape(-1).view(_WHOLE[tensor.element_size()])
        by_device.setdefault(tensor.device, []).append((place, whole.sum(dtype=torch.int64)))
    found = [0] * len(tensors)
    for sums in by_device.values():
        for (place, _), value in zip(sums, torch.stack([s for _, s in sums]).tolist(), strict=True):
            found[place] = value
    return found


def _by_shard(tensors: Mapping[str, Tensor], numbers: list[int]) -> list[int | None]:
    """`numbers`, one a tensor, in the places of this rank's rows: a block for each shard of a copy, None in
    those of the others. A copy is in the first block."""
    groups = {name: shard_group(t) for name, t in tensors.items() if is_sharded(t)}
    blocks = max((group.size for group in groups.values()), default=1)
    placed: list[int | None] = [None] * (blocks * len(numbers))
    for i, (name, number) in enumerate(zip(tensors, numbers, strict=True)):
        block = groups[name].rank if name in groups else 0
        placed[block * len(numbers) + i] = number
    return placed


def _differing(world: World, numbers: Sequence[int | None]) -> list[int]:
    """Places at which not all ranks that have a number have the same; at least one has."""
    # ~c reverses the order, so the largest of ~c is that of the smallest c; what is not there is smaller
    # than any.
    least = -(2**63)
    largest = world.largest_of(
        [*(least if c is None else c for c in numbers), *(least if c is None else ~c for c in numbers)]
    )
    half = len(numbers)
    return [
        i
        for i in range(half)
        if largest[i] != ~largest[half + i] and not (largest[i] == largest[half + i] == least)
    ]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
