"""Several processes, one run: the ranks, what they agree on, and the sums of their gradients."""

from lowrise.distributed.consistency import check_alike, check_same_work
from lowrise.distributed.gradients import GradientSum, clip_gradients_
from lowrise.distributed.world import FailedElsewhere, LostRanks, World

__all__ = [
    "FailedElsewhere",
    "GradientSum",
    "LostRanks",
    "World",
    "check_alike",
    "check_same_work",
    "clip_gradients_",
]
