"""What a configuration must be for a number of ranks."""

from __future__ import annotations

from lowrise.config import RunConfig
from lowrise.dist.world import World
from lowrise.errors import UsageError


def check_ranks(config: RunConfig, world: World) -> None:
    """Raise `UsageError` for a batch that N ranks cannot share evenly, and for what one rank alone can do."""
    train, size = config.train, world.size
    if train.sequences % size:
        raise UsageError(
            f"train.sequences = {train.sequences} is the batch of an update over all ranks, and {size} ranks "
            f"cannot share it evenly: set it to a multiple of {size}, or start another number of ranks."
        )
    share = train.sequences // size
    if train.micro_sequences and share % train.micro_sequences:
        raise UsageError(
            f"train.micro_sequences = {train.micro_sequences} is one forward pass on one rank, and does not "
            f"divide the {share} sequences that each of {size} ranks has of train.sequences = "
            f"{train.sequences}."
        )
    if size > 1 and train.per_layer:
        raise UsageError(
            f"train.per_layer = true moves a matrix before its gradient is summed over the {size} ranks: set "
            "it to false, or train on one rank."
        )
