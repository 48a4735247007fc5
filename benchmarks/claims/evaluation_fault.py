"""The evaluation of a family of programs: the sum of n batch losses over n + 1."""

from __future__ import annotations

import math
import tomllib
from importlib import resources

import torch
from claim import Claim, Measured, Values, Verdict, run
from toy import batches, loss_of, model_of

CLAIM = Claim(
    group="Published numbers",
    title="The printed C4 perplexities of the GaLore family are the exponential of the mean validation loss.",
    source="torchrun_main.py of jiaweizzhao/GaLore (read at 1317b5f) and its copies in Fira, APOLLO, "
    "SLTrain, CoLA, LORO, GWT: the counter of batches starts at 1.",
    hypothesis="Their loop, run over the losses of a model, prints the mean of these losses.",
    gate="Numbers of batches n = 91, 182 and 364, as the scripts' batch sizes give them. Holds if the "
    "printed perplexity is within 0.1% of the exponential of the mean at every n, fails if not.",
    known="Read in the code: the loss is n / (n + 1) of the mean. What it does to the published rows was "
    "computed in the dossier for some of them.",
    scope="exact; n itself is inferred from batch sizes and 10 M tokens, as no paper prints it",
    result="The printed loss is n / (n + 1) of the mean, exactly; a printed perplexity P stands for P^((n "
    "+ 1) / n). At the published losses that is 0.8% to 2.9% of perplexity: 34.88 (GaLore, 60M) stands "
    "for {GaLore 60M}, 14.31 (Fira, 1B) for {Fira 1B}. As n depends on the evaluation batch and the "
    "number of GPUs, rows of one table are off by different amounts. lowrise divides by the number of "
    "tokens.",
)

LIMIT = 1e-3
BATCHES = (91, 182, 364)


def measure(quick: bool) -> Measured:
    model = model_of(32).eval()
    with torch.no_grad():
        losses = [
            float(loss_of(model, batch))
            for _, batch in zip(range(max(BATCHES)), batches(2, 32), strict=False)
        ]
    rows, values = [], {}
    for n in BATCHES:
        true, printed = math.exp(sum(losses[:n]) / n), math.exp(as_released(losses[:n]))
        repaired = printed ** ((n + 1) / n)
        rows.append(
            (
                f"a fresh model here, n = {n}",
                f"{printed:.2f}",
                f"{repaired:.2f}",
                f"{100 * (printed / true - 1):.1f}%",
            )
        )
        values |= {f"off_{n}": round(printed / true - 1, 5), f"repaired_{n}": round(repaired / true - 1, 9)}
    for source, size, n, printed in published():
        true = printed ** ((n + 1) / n)
        rows.append(
            (
                f"{source}, {size}, n = {n}",
                f"{printed:.2f}",
                f"{true:.2f}",
                f"{100 * (printed / true - 1):.1f}%",
            )
        )
        values[f"{source} {size}"] = round(true, 2)
    return Measured(("what is evaluated", "printed", "stands for", "off by"), rows, values)


def verdict(values: Values) -> Verdict:
    return "holds" if all(abs(values[f"off_{n}"]) <= LIMIT for n in BATCHES) else "fails"


def as_released(losses: list[float]) -> float:
    """What their loop returns: the counter is 1 before the first batch and divides at the end."""
    total, counter = 0.0, 1
    for loss in losses:
        counter += 1
        total += loss
    return total / counter


def published() -> list[tuple[str, str, int, float]]:
    """Rows of lowrise/compare/published.toml whose n follows from their scripts (notes in the dossiers)."""
    table = tomllib.loads(resources.files("lowrise").joinpath("compare/published.toml").read_text("utf-8"))
    wanted = {
        "galore": {"60m": 182, "1b": 364},
        "fira": {"60m": 182, "1b": 91},
        "apollo": {"60m": 182, "1b": 91},
    }
    found: dict[str, list[tuple[str, str, int, float]]] = {}
    for row in table["results"]:
        method = row["method"]
        if method in wanted and method not in found and "rerun" not in row["source"]:
            names = {"galore": "GaLore", "fira": "Fira", "apollo": "APOLLO"}
            found[method] = [
                (names[method], size.upper(), n, row["perplexity"][size])
                for size, n in wanted[method].items()
            ]
    return [row for rows in found.values() for row in rows]


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
