"""Fira against GaLore."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="Fira ends lower than GaLore at the same rank.",
    source="Chen et al., arXiv 2410.01623, Table 3: 31.06 against 34.88 at 60M, GaLore's row copied.",
    hypothesis="The released form of Fira ends lower than GaLore, each at its own tuned rate, rank d/4.",
    gate="95% Welch interval of the difference of means. Holds below zero, fails above zero, undecided "
    "around it.",
    known=SEEN,
    scope=TINY + "; the released form of Fira",
    result="{difference}: not shown to differ. (The paper's form of the residual is a method of its own, "
    "see above.)",
    decides="60M with the published protocol, both rows run in one program and tuned alike.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    return difference(("tiny-wiki-fira", "fira-tiny"), ("tiny-wiki-galore", "galore-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
