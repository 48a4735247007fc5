"""SWAN against AdamW: a rule without state."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="SWAN, without any state for matrices, ends lower than AdamW at equal tokens.",
    source="Ma et al., arXiv 2412.13148 (abstract: Adam's perplexity with half of the tokens).",
    hypothesis="At equal tokens, each at its own tuned rate; embeddings and head by AdamW in both.",
    gate="95% Welch interval of the difference of means. Holds below zero, fails above zero, undecided "
    "around it.",
    known=SEEN,
    scope=TINY + "; half of the tokens was not tested; 1.4 times the FLOPs of AdamW's run",
    result="{difference}: lower, at the tokens of AdamW's run.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    return difference(("tiny-wiki-swan", "swan-tiny"), ("tiny-wiki-tokens", "adamw-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
