"""A plain low-rank model against a dense one, both with tuned AdamW."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="A plain low-rank model with Adam is far behind the dense one.",
    source="GaLore, arXiv 2403.03507, Table 2: perplexity 78.18 against 34.06 at 60M, 142.53 against 15.56"
    " at 1B; one rate for everything, copied into most tables since.",
    hypothesis="At equal tokens dense AdamW ends lower than AdamW on factors of rank d/4, each at its own "
    "tuned rate.",
    gate="95% Welch interval of dense minus low-rank. Holds below zero, fails above zero, undecided around"
    " it.",
    known=SEEN,
    scope=TINY + "; dense models need more tokens than these",
    result="{difference}: here it is the dense model that ends higher. So factors with Adam need not be "
    "far behind when both are tuned alike; whether the published gap opens at more tokens or larger "
    "widths these runs do not say.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    return difference(("tiny-wiki-tokens", "adamw-tiny"), ("tiny-wiki-tokens", "lowrank-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
