"""Half the compute with factors of rank d/4, counted."""

from __future__ import annotations

from claim import Claim, Measured, Values, Verdict, run
from planned import plan

CLAIM = Claim(
    group="Published numbers",
    title="Factors of rank d/4 halve the arithmetic of training, from 60M to 7B.",
    source="CoLA, arXiv 2502.10940, abstract: computing cost reduced by 2x on Llama of 60M to 7B.",
    hypothesis="Training FLOPs a token of the dense model over those of the factored one, head and "
    "attention included, at the released ranks (130M: d/3) and 256 tokens a sequence.",
    gate="Holds if the ratio is at least 1.9 at every size, fails if at one it is not.",
    known="By arithmetic of the blocks alone more than 2 at d/4; with the head no number was at hand.",
    scope="exact counts; not time, which the same FLOPs do not fix",
    result="From 350M on the arithmetic falls to less than half (ratios {ratio_350m:.2f}, {ratio_1b:.2f}, "
    "{ratio_7b:.2f}), at 60M and 130M only by a third ({ratio_60m:.2f}, {ratio_130m:.2f}): the head of "
    "32,000 entries is not factored, and 130M is released with d/3. So the sentence holds from 350M on.",
)

LIMIT = 1.9
SIZES = ("60m", "130m", "350m", "1b", "7b")


def measure(quick: bool) -> Measured:
    rows, values = [], {}
    for size in SIZES[:2] if quick else SIZES:
        dense, factored = (plan(method, size) for method in ("adamw", "cola"))
        ratio = dense.flops_per_token / factored.flops_per_token
        fewer = factored.params_total / dense.params_total
        rows.append(
            (
                size,
                f"{dense.flops_per_token / 1e6:,.0f}",
                f"{factored.flops_per_token / 1e6:,.0f}",
                f"{ratio:.2f}",
                f"{fewer:.2f}",
            )
        )
        values[f"ratio_{size}"] = round(ratio, 3)
    columns = ("size", "dense, MFLOPs a token", "CoLA", "ratio", "parameters of CoLA / dense")
    return Measured(columns, rows, values)


def verdict(values: Values) -> Verdict:
    return "holds" if all(ratio >= LIMIT for ratio in values.values()) else "fails"


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
