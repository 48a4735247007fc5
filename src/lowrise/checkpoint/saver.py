"""Saving beside training.

`Saver.save` takes a copy of everything in CPU memory, and a thread writes, hashes, flushes and renames it
while training goes on:

1. the ranks agree who writes what (collective, no values)
2. each copies what it will write, into memory that is kept until the run's end
3. the threads of all ranks write, and agree through a process group of their own, so that they never meet a
   collective of the training

 What is written was copied between two updates, so it has the bits that waiting
would have written, and nothing that the thread does touches a weight.

One save is under way at most. What the thread met is raised at the next `save` or `finish`, at all ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from lowrise.checkpoint.layout import Parts, agree
from lowrise.checkpoint.store import CheckpointStore
from lowrise.checkpoint.writer import Buffers
from lowrise.distributed import World
from lowrise.distributed.collectives import Words
from lowrise.distributed.world import COLLECTIVE_TIMEOUT


class Saver:
    """Saves of one run, one after the other. A `with` block around the run waits for the last one where it
    fails, without talking to other ranks, which may be gone."""

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        *,
        keep: int,
        keep_every: int = 0,
        asynchronous: bool = True,
        whole: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.store = store
        self.world = world
        self.keep = keep
        self.keep_every = keep_every
        self.asynchronous = asynchronous
        self.whole = whole
        self._warn = warn
        self.besides: frozenset[int] = frozenset()
        """Steps whose checkpoints are kept too."""
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._under_way = False
        self._buffers = Buffers()
        self._words: Words | None = None

    def save(self, step: int, parts: Parts, numbers: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of `parts` (live tensors that this rank has) and `numbers` (rank 0's
        count); waits for the save before it. Collective. When it returns, the tensors may change."""
        self.finish()
        words = self._own_words()
        plan = agree(parts, words, collect=self.whole)
        pieces = plan.pieces(parts, self.world.rank)
        if self.asynchronous:
            pieces = self._buffers.copied(pieces)

        def work() -> None:
            try:
                self.store.write(step, plan, pieces, numbers, words)
                if self.world.leads:
                    self.retire()
            except Exception as error:
                self._failure = error

        self._under_way = True
        if not self.asynchronous:
            work()
            self.finish()
        elif plan.by_all or self.world.leads:
            # A daemon: a second stop signal, which acts at once, does not wait for it.
            self._thread = threading.Thread(target=work, name=f"checkpoint {step}", daemon=True)
            self._thread.start()

    def retire(self) -> None:
        """Delete the checkpoints that are not to be kept. For one rank, while nothing is being written."""
        self.store.retire(self.keep, self.keep_every, self.besides)

    def finish(self) -> None:
        """Wait until what was saved is on the disk, at every rank; raises what any of them met.
        Collective."""
        if not self._under_way:
            return
        self._join()
        failure, self._failure, self._under_way = self._failure, None, False
        self._own_words().together(lambda: _raise(failure))

    def __enter__(self) -> Self:
        self._own_words()  # now: ranks meet through torchrun, which may be gone by the first save
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, Exception):
            self._join()
            if self._failure is not None:
                self._warn(f"Besides: {self._failure}")
        self._failure, self._under_way, self._buffers = None, False, Buffers()
        words, self._words = self._words, None
        if words is not None:
            words.end()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _own_words(self) -> Words:
        """Words over a group of our own. Collective when called first."""
        if self._words is None:
            several = self.asynchronous and self.world.size > 1
            group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if several else None
            self._words = Words(self.world, group)
        return self._words


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
