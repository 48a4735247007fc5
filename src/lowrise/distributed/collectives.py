"""Longer words between ranks: lists and texts as JSON, and what one of them cannot do told to all.

`Words(world, group)` speaks over a process group of its own where one is given, so that a thread can talk
while the main thread is in other collectives. Identity for one rank. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowrise.distributed.world import World, last_tensors, lost_ranks_explained
from lowrise.errors import LowriseError


class FailedTogether(LowriseError):
    """Another rank could not do its part, and this is its sentence; every rank ends with this exit code."""

    exit_code = 1


class Words:
    """What the ranks of `world` tell each other over `group` (None: the one of the run)."""

    def __init__(self, world: World, group: dist.ProcessGroup | None = None) -> None:
        self.world = world
        self.group = group
        self._last = last_tensors()

    def all(self, value: Any) -> list[Any]:
        """Every rank's value (whatever JSON can say), by rank."""
        if self.world.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with lost_ranks_explained(self.world):
            length = torch.tensor([len(own)])
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world.size)]
            dist.all_gather(lengths, length, group=self.group)
            longest = max(int(length) for length in lengths)
            text = torch.nn.functional.pad(own, (0, longest - len(own)))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
            dist.all_gather(texts, text, group=self.group)
            self._last.append([length, *lengths, text, *texts])
        return [
            json.loads(text[: int(length)].numpy().tobytes())
            for text, length in zip(texts, lengths, strict=True)
        ]

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """Do something at every rank; all results, by rank.

        Where it fails at a rank, that rank raises what it met, the others `FailedTogether` with its words.
        """
        if self.world.size == 1:
            return [action()]
        try:
            outcome, met = {"value": action()}, None
        except Exception as error:
            outcome, met = {"failure": str(error) or type(error).__name__}, error
        outcomes = self.all(outcome)
        if met is not None:
            raise met
        for rank, told in enumerate(outcomes):
            if "failure" in told:
                raise FailedTogether(f"Rank {rank}: {told['failure']}")
        return [told["value"] for told in outcomes]

    def end(self) -> None:
        """End the group, where there is one of our own; its last tensors outlive it."""
        group, self.group = self.group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def send(self, tensor: Tensor) -> None:
        """The bytes of a tensor on the CPU, to rank 0."""
        with lost_ranks_explained(self.world):
            dist.send(tensor.contiguous().reshape(-1).view(torch.uint8), dst=0, group=self.group)

    def receive_(self, tensor: Tensor, rank: int) -> None:
        """Fill a contiguous tensor on the CPU with what `rank` sends."""
        with lost_ranks_explained(self.world):
            dist.recv(tensor.view(-1).view(torch.uint8), src=rank, group=self.group)
