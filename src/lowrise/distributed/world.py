"""The processes of a run.

`World` is who we are (rank k of N) and what small things ranks tell each other: sums, the largest of numbers,
whether rank 0 has done its part. All of it is the identity for one rank, so the training loop is the same
for one and for many. Words travel in tensors on the CPU by gloo, also beside NCCL, so that nothing here waits
for a GPU; only gradients and their loss are summed where they are.

torchrun names the ranks in the environment (RANK, WORLD_SIZE, LOCAL_RANK). A collective that fails because
other ranks have gone raises `LostRanks`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lowrise.errors import LowriseError, UsageError

# How long a rank waits for one that neither answers nor dies. Rank 0 writes checkpoints and the report
# meanwhile, which may take minutes; a rank that dies is noticed at once, by its closed connections.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def last_tensors() -> deque[list[Tensor]]:
    """For what the last collectives were about: to be appended to, and to outlive the process group.

    A thread of gloo lets go of the tensors after the caller has been told. Is it the last to do so while the
    group is being ended, it waits for Python, which waits for the thread: torch 2.6 stands still.
    """
    return deque(maxlen=8)


class LostRanks(LowriseError):
    """Other ranks have gone, or do not answer."""


class FailedElsewhere(LowriseError):
    """Rank 0 could not do its part and says why; the other ranks end with the same exit code, silently."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("rank 0 could not do its part; its own message says why.")
        self.exit_code = exit_code


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size`, number `local_rank` of the `ranks_here` (0: all) on its machine. The default is
    one process alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    ranks_here: int = 0
    _last: deque[list[Tensor]] = field(default_factory=last_tensors, init=False, repr=False, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """The ranks that torchrun has started; one rank where it has not. Raises `UsageError` for values that
        are no ranks."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        values = [environment.get(name, default) for name, default in zip(names, "0100", strict=True)]
        if not all(value.isdecimal() for value in values) or not int(values[0]) < int(values[1]):
            told = ", ".join(f"{name} = {value!r}" for name, value in zip(names, values, strict=True))
            raise UsageError(
                f"The environment names no rank of a run ({told}): start with torchrun, or unset them."
            )
        rank, size, local, here = map(int, values)
        return cls(rank, size, local, here) if size > 1 else cls()

    @property
    def local_size(self) -> int:
        """Ranks on this machine."""
        return self.ranks_here or self.size

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this rank, where the configuration chose `chosen`: one GPU a rank."""
        if self.size == 1 or chosen.type != "cuda":
            return chosen
        if chosen.index is not None:
            raise UsageError(
                f"train.device = '{chosen}' with {self.size} ranks: every rank takes the GPU of its own "
                "number; set train.device = auto or cuda."
            )
        if self.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"Rank {self.rank} is number {self.local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} CUDA devices: start as many ranks (--nproc-per-node) as there "
                "are GPUs."
            )
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def joined(self, device: torch.device, patience: timedelta = COLLECTIVE_TIMEOUT) -> Iterator[World]:
        """Meet the other ranks; inside the block they can be talked to."""
        if self.size == 1:
            yield self
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with lost_ranks_explained(self):
            dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=patience)
        try:
            yield self
        except BaseException:
            # Closes the connections, so that the others hear of it now. NCCL would wait for them first.
            if device.type == "cpu":
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()

    def share(self, count: int) -> slice:
        """The rows of this rank, of `count` rows: consecutive, and as even as can be."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    # --- what ranks tell each other -----------------------------------------------------------------------

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place, where the tensor is."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def total(self, *numbers: float) -> list[float]:
        """Sums over ranks, in float64."""
        return self.sum_(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return self.largest_of([number])[0]

    def largest_of(self, numbers: Sequence[int]) -> list[int]:
        """The largest of all ranks' numbers, place by place."""
        if self.size == 1:
            return list(numbers)
        return self._reduce(torch.tensor(numbers, dtype=torch.int64), dist.ReduceOp.MAX).tolist()

    def gathered(self, number: int) -> list[int]:
        """Every rank's number, by rank."""
        places = torch.zeros(self.size, dtype=torch.int64)
        places[self.rank] = number
        return self.sum_(places).tolist()

    def by_rank_0(self, action: Callable[[], int | None]) -> int:
        """Let rank 0 do something while the others wait; its number (0 for None) is everybody's result.

        Where it fails, it raises what it met, and the others `FailedElsewhere` with the same exit code.
        """
        if self.size == 1:
            return action() or 0
        if not self.leads:
            failure, number = self.told_by_rank_0(0, 0)
            if failure:
                raise FailedElsewhere(failure)
            return number
        try:
            number = action() or 0
        except BaseException as error:
            usage = isinstance(error, UsageError)
            self.told_by_rank_0(2 if usage else getattr(error, "exit_code", 1), 0)
            raise
        self.told_by_rank_0(0, number)
        return number

    def told_by_rank_0(self, *numbers: int) -> list[int]:
        """Rank 0's numbers, at all ranks."""
        told = torch.tensor(numbers, dtype=torch.int64)
        self._last.append([told])
        with lost_ranks_explained(self):
            dist.broadcast(told, src=0)
        return told.tolist()

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size > 1:
            self._last.append([tensor])
            with lost_ranks_explained(self):
                dist.all_reduce(tensor, operation)
        return tensor


@contextmanager
def lost_ranks_explained(world: World, *, among_others: bool = False) -> Iterator[None]:
    """Raise `LostRanks` where torch reports a closed connection or a timeout, as a RuntimeError.

    Not where the device's memory is full, which is one too; and where the block does other work
    (`among_others`) only for errors that name a connection.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        named = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
        if among_others and not named:
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LostRanks(
            f"Rank {world.rank} has lost the other ranks ({first_line}): the first error above, or the "
            "table that torchrun prints, says which one failed and why. The same command continues from "
            "the newest checkpoint."
        ) from error
