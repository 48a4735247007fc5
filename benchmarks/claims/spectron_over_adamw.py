"""Spectron against AdamW on the same factors."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="Spectron ends lower than AdamW on the same factors.",
    source="Janson, Oyallon, Belilovsky, arXiv 2602.12429: perplexity 12.11 against 14.57 at 454M.",
    hypothesis="At equal tokens, each at its own tuned rate.",
    gate="95% Welch interval of the difference of means. Holds below zero, fails above zero, undecided "
    "around it. Equal tokens decide; equal FLOPs stand beside.",
    known=SEEN,
    scope=TINY + ", equal tokens",
    result="At equal tokens {difference}. At equal FLOPs {difference_flops}, which leaves zero out, but "
    "the gate is about tokens, and rates were not tuned again there.",
    decides="More seeds and longer runs: about 0.02 nats is what has to be seen.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    found, flops = (
        difference((table, "spectron-tiny"), (table, "lowrank-tiny"))
        for table in ("tiny-wiki-tokens", "tiny-wiki-flops")
    )
    values = found.values | {f"{name}_flops": value for name, value in flops.values.items()}
    return Measured(found.columns, [*found.rows, *flops.rows], values)


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
