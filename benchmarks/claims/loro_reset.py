"""LORO's reset of all moments with each exact step: what it does to the loss."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="Dropping all of Adam's moments at every exact step helps LORO.",
    source="The published recipe (LORO-main at 4da57b6): exact step, reset of all moments and restart of "
    "the learning rate always come together; the restart is there for the reset.",
    hypothesis="Lazy steps with resets every 100 of 800 updates end lower than lazy steps without.",
    gate="95% interval of the differences paired by seed (runs of a seed draw the same weights and "
    "batches), one rate for both, the complete method's. Holds below zero, fails above zero, undecided "
    "around it.",
    known=SEEN,
    scope=TINY + "; 8 cycles of 100 updates, not 20 to 500 cycles of 500 as published",
    result="{difference}: the reset costs {mean:.2f} nats here, and the interval leaves zero out.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    table = "tiny-wiki-loro"
    return difference((table, "loro-tiny-reset"), (table, "loro-tiny-lazy"), by_seed=True)


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
