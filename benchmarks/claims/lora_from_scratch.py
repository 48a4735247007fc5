"""LoRA from scratch against ReLoRA: what merging is worth."""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import SEEN, TINY, difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="ReLoRA's merges make it better than LoRA from scratch.",
    source="Lialin et al., arXiv 2307.05695, Table 2: 34.46 against 47.44 at 60M (there with a dense start"
    " of training, which neither row here has).",
    hypothesis="At equal tokens ReLoRA (a merge every quarter of the run) ends lower than LoRA, each at "
    "its own tuned rate.",
    gate="95% Welch interval of the difference of means. Holds below zero, fails above zero, undecided "
    "around it.",
    known=SEEN,
    scope=TINY + "; four merges, no dense start",
    result="{difference}: the interval reaches just beyond zero.",
    decides="More seeds, or the dense start that the paper's rows have.",
)

verdict = lower_is_claimed


def measure(quick: bool) -> Measured:
    table = "tiny-wiki-weights-tokens"
    return difference((table, "relora-tiny"), (table, "lora-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
