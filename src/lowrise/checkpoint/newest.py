"""The newest whole checkpoint, for all ranks of a run: rank 0 looks for it, the others open the same one."""

from __future__ import annotations

from collections.abc import Callable

from lowrise.checkpoint.checkpoint import Checkpoint
from lowrise.checkpoint.store import CheckpointStore
from lowrise.distributed import World
from lowrise.errors import LowriseError


def newest_checkpoint(store: CheckpointStore, world: World, warn: Callable[[str], None]) -> Checkpoint | None:
    """As `CheckpointStore.newest`, for the processes that train: rank 0 alone sweeps up what a kill has left,
    verifies the files and sets damaged ones aside. Every rank then reads what it needs by itself.
    """
    found: Checkpoint | None = None

    def look() -> int:
        nonlocal found
        store.sweep()
        found = store.newest(warn)
        return -1 if found is None else found.step

    step = world.by_rank_0(look)
    if step < 0 or world.leads:
        return found
    if not store.path(step).is_dir():
        raise LowriseError(
            f"Rank {world.rank} does not see {store.path(step)}, which rank 0 does: put the run's folder "
            "(--run) on a file system that all machines share."
        )
    return store.load(step, verify=False)
