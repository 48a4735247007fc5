"""APOLLO-Mini against APOLLO: what the rank of one costs."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="APOLLO-Mini, with one direction, ends lower than AdamW.",
    source="Zhu et al., arXiv 2412.05270, Table 2: 31.93 against 34.06 at 60M, AdamW's row copied.",
    hypothesis="At equal tokens, each at its own tuned rate.",
    gate="95% Welch interval of the difference of means. Holds below zero, fails above zero, undecided "
    "around it.",
    known=SEEN,
    scope=TINY,
    result="{difference}: not shown to differ from a tuned AdamW.",
    decides="The same at 60M, against AdamW tuned on the same grid; or more seeds here.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    return difference(("tiny-wiki-apollo-mini", "apollo-mini-tiny"), ("tiny-wiki-tokens", "adamw-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
