"""Several processes, one run: the ranks, what they agree on, and the sums of their gradients."""

from lowrise.dist.agreement import check_alike, check_same_work
from lowrise.dist.gradients import GradientSum
from lowrise.dist.world import FailedElsewhere, LostRanks, World

__all__ = ["FailedElsewhere", "GradientSum", "LostRanks", "World", "check_alike", "check_same_work"]
