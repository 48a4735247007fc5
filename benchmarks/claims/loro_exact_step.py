"""LORO's exact step alone: what it does to the loss."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="The exact Riemannian step makes LORO better than its lazy steps alone.",
    source="Mo, Huang, Pan, ICLR 2025: the method's name and derivation; reviewers asked for the comparison.",
    hypothesis="Lazy steps with every 100th an exact one (moments carried over, no reset, no restart) end "
    "lower than lazy steps alone.",
    gate="95% interval of the differences paired by seed, one rate for both. Holds below zero, fails above"
    " zero, undecided around it.",
    known=SEEN,
    scope=TINY + "; 8 exact steps",
    result="{difference}: nothing that three seeds could see; effects beyond {high} are left out.",
    decides="Hundreds of exact steps instead of 8, or many more seeds for a difference of a few thousandths.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    table = "tiny-wiki-loro"
    return difference((table, "loro-tiny-exact"), (table, "loro-tiny-lazy"), by_seed=True)


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
