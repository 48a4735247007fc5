"""What Spectron's step adds to the arithmetic of training."""

from __future__ import annotations

from claim import Claim, Measured, Values, Verdict, run
from planned import plan

CLAIM = Claim(
    group="Published numbers",
    title="Spectron's step adds less than 1% to the FLOPs of training.",
    source="Janson, Oyallon, Belilovsky, arXiv 2602.12429.",
    hypothesis="FLOPs of the optimizer over those of forward and backward, at the batch of the GaLore "
    "family (131,072 tokens an update); Spectron's own batch is not known.",
    gate="Holds if the share is below 1% at all of 60M to 1B, fails if at one it is not. Beside: 32,768 "
    "and 8,192 tokens.",
    known="The dossier's handy form gives 0.26% at rank 256 and half a million tokens, 3.9% at 32k.",
    scope="exact counts at these batches; not time, which small products do not follow",
    result="Below 1% up to 350M ({350m_131072%:.2f}), and {1b_131072%:.2f} at 1B: the share grows with the"
    " rank and falls with the tokens of an update. What fails, by little, is the sentence at this batch; "
    "at four times the batch the share at 1B is a quarter of that. The paper's own batch is not known.",
)

LIMIT = 0.01
SIZES = ("60m", "130m", "350m", "1b")
TOKENS = (131_072, 32_768, 8_192)


def measure(quick: bool) -> Measured:
    rows, values = [], {}
    for size in SIZES[-1:] if quick else SIZES:
        counted = plan("spectron", size)
        shares = [counted.optimizer_flops_per_step / (counted.flops_per_token * tokens) for tokens in TOKENS]
        rows.append((size, *(f"{100 * share:.2f}%" for share in shares)))
        values |= {f"{size}_{tokens}": round(share, 5) for tokens, share in zip(TOKENS, shares, strict=True)}
    return Measured(("size", *(f"{tokens:,} tokens an update" for tokens in TOKENS)), rows, values)


def verdict(values: Values) -> Verdict:
    at_batch = [share for name, share in values.items() if name.endswith(f"_{TOKENS[0]}")]
    return "holds" if all(share < LIMIT for share in at_batch) else "fails"


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
