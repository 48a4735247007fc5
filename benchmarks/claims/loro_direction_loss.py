"""The direction of LORO's exact step: what it does to the loss."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="With a direction that is a Riemannian gradient, complete LORO ends lower than as released.",
    source="What the derivation would lead one to expect; nobody claims it in print.",
    hypothesis='`exact_direction = "consistent"` ends lower than `"authors"`, all else the complete method.',
    gate="95% interval of the differences paired by seed, one rate for both. Holds below zero, fails above"
    " zero, undecided around it.",
    known=SEEN,
    scope=TINY + "; 8 exact steps",
    result="{difference}: not shown to differ; gains beyond {low} are left out.",
    decides="Exact steps much more often than one in a hundred, where a direction could matter.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    table = "tiny-wiki-loro"
    return difference((table, "loro-tiny-consistent"), (table, "loro-tiny"), by_seed=True)


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
