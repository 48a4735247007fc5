"""Spectron against AdamW on the same factors, at twice the tokens and twice the batch."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="Spectron ends lower than AdamW on the same factors, at twice the tokens.",
    source="Janson, Oyallon, Belilovsky, arXiv 2602.12429: perplexity 12.11 against 14.57 at 454M.",
    hypothesis="At equal tokens, each at its own tuned rate: what 0.8 M tokens left undecided.",
    gate="95% Welch interval of the difference of means. Holds below zero, fails above zero, undecided "
    "around it.",
    known="The gate is that of the claim above, which was committed (spectron_over_adamw.py) before any of "
    "these runs of the two recipes had ended; this script was written after them.",
    scope="tiny: width 128, 4 layers, English Wikipedia, 1.6 M tokens in 800 updates, 3 seeds, equal tokens",
    result="{difference}, not corrected for the other differences of that table. Against tuned dense Muon "
    "neither is lower (docs/results.md).",
    decides="",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    table = "tiny-wiki-study-tokens"
    return difference((table, "spectron-tiny"), (table, "lowrank-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
