"""One learning rate over ranks.

The runs are those of benchmarks/transfer.py: width 128, ranks 8 to 64, rates on a grid of factor 2.
"""

from __future__ import annotations

import json
import math

from claim import Claim, Measured, Values, Verdict, run
from common import RESULTS
from transfer_figure import Curve, curves

CLAIM = Claim(
    group="Losses",
    title="One learning rate serves every rank of a factored model.",
    source="LoRA-Muon, arXiv 2606.12921 (abstract: rank 2 finds the dense best rate); of Spectron it "
    "follows from its bound, which does not know the rank.",
    hypothesis="Spectron's best rate without multipliers stays within one step of a grid of factor 2 over "
    "rank 8 to 64.",
    gate="The best rate of a rank is located if it lies inside of the grid and both neighbours are at "
    "least 0.01 above it (single runs scatter by 0.005). Undecided unless it is located at every rank; "
    "then holds if the best rates lie within a factor of 2, and fails if not. Beside: where the loss has "
    "risen by 0.03, and the same with `[transfer]`, and for low-rank AdamW.",
    known='Runs of 0.1 M tokens were there, with the verdict "not passed" of docs/transfer.md, before this '
    "gate was written; they located the best rate at no rank. The runs of 0.5 M tokens came after it.",
    scope="width 128, ranks 8 to 64, 0.5 M tokens, one seed",
    result="Spectron's best rates lie {spectron_plain_best} steps apart, within the factor of 2, but only "
    "{spectron_plain_located} of {spectron_plain_ranks} are located by this gate: at one rank a neighbour is "
    "as good within what runs scatter by. LoRA-Muon's lie {loramuon_plain_best} apart. Low-rank AdamW's, all "
    "located, move by {lowrank_plain_best} steps without multipliers and by {lowrank_transfer_best} with "
    "`[transfer]`.",
    decides="Two further seeds: `benchmarks/transfer.py --seeds 3 --only spectron loramuon`.",
)

LOCATED, STEP = 0.01, 1.0
RANKS = "rank"


def measure(quick: bool) -> Measured:
    record = json.loads((RESULTS / "transfer_long_cpu.json").read_text(encoding="utf-8"))
    found = curves(record)
    rows, values = [], {}
    for method, title in (("spectron", "Spectron"), ("loramuon", "LoRA-Muon"), ("lowrank", "low-rank AdamW")):
        for transfer in (False, True):
            of_ranks = found.get((method, RANKS, transfer), [])
            key = f"{method}_{'transfer' if transfer else 'plain'}"
            located = sum(is_located(curve) for curve in of_ranks)
            values |= {f"{key}_located": located, f"{key}_ranks": len(of_ranks)}
            values |= {f"{key}_best": spread([c.best for c in of_ranks])}
            values |= {f"{key}_rise": spread([c.edge for c in of_ranks])}
            best = ", ".join(f"{c.size}: {c.best:+.1f}" for c in of_ranks)
            rows.append(
                (
                    title,
                    "yes" if transfer else "no",
                    best,
                    f"{located} of {len(of_ranks)}",
                    shown(values[f"{key}_best"]),
                    shown(values[f"{key}_rise"]),
                )
            )
    columns = (
        "optimizer",
        "`[transfer]`",
        "best rate, log2, by rank",
        "located",
        "spread",
        "spread of the rise",
    )
    return Measured(columns, rows, values)


def verdict(values: Values) -> Verdict:
    if (
        values["spectron_plain_located"] < values["spectron_plain_ranks"]
        or values["spectron_plain_ranks"] < 2
    ):
        return "undecided"
    return "holds" if values["spectron_plain_best"] <= STEP else "fails"


def is_located(curve: Curve) -> bool:
    """Whether the best rate stands out from both of its neighbours."""
    k = min(curve.losses, key=curve.losses.__getitem__)
    around = [curve.losses.get(k + i, -math.inf) for i in (-1, 1)]
    return all(loss >= curve.losses[k] + LOCATED for loss in around)


def spread(powers: list[float]) -> float | None:
    known = [power for power in powers if math.isfinite(power)]
    return round(max(known) - min(known), 1) if len(known) > 1 else None


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
