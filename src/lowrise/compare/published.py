"""Published perplexities beside ours, where the protocol is the same; else why they do not stand there."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from lowrise.compare.plan import Plan, Recipe, lookup
from lowrise.model.config import PRESETS

_SHAPE = ("hidden_size", "intermediate_size", "num_layers", "num_heads")

BIAS = (
    "How the published numbers are biased: the programs of this family divide the sum of n batch losses by "
    "n + 1, so that a printed perplexity P stands for P^(1 + 1/n); n is not published with each number, and "
    "the last column gives the range for n of {low} to {high}. Documents are cut or padded to the sequence "
    "there and packed here, one seed stands behind each number and its spread is unknown, and baselines were "
    "mostly copied from paper to paper, not tuned."
)


@dataclass(frozen=True)
class Published:
    """`rows`: recipe, ours, theirs, theirs without the known bias (low, high), source. Without rows, `note`
    says why.
    """

    rows: tuple[dict[str, Any], ...]
    note: str


def beside(plan: Plan, perplexity: Mapping[str, float | None]) -> Published:
    """The published numbers of each recipe's method and size. `perplexity`: ours, by recipe."""
    table = _table()
    rows: list[dict[str, Any]] = []
    reasons: dict[str, list[str]] = {}
    for recipe in plan.recipes:
        differing = deviations(recipe)
        if differing:
            reasons[recipe.label] = differing
        else:
            rows += _rows(recipe, perplexity.get(recipe.label))
    if rows:
        low, high = table["bias"]["batches"]
        return Published(tuple(rows), BIAS.format(low=low, high=high))
    if reasons:
        shared = [
            reason for reason in next(iter(reasons.values())) if all(reason in r for r in reasons.values())
        ]
        why = "; ".join(shared or next(iter(reasons.values())))
        return Published((), f"No published number stands beside these, since none is comparable: {why}.")
    return Published((), "No published number is known for these methods at this size.")


def deviations(recipe: Recipe) -> list[str]:
    """In what a recipe departs from the published protocol; empty where its numbers may be compared."""
    return list(_deviations(recipe))


def _deviations(recipe: Recipe) -> Iterator[str]:
    table, tree = _table(), recipe.config
    protocol = table["protocol"]
    source = lookup(tree, "data.source")
    sources = [source] if isinstance(source, str) else list(source or ["unknown"])
    if not all(protocol["text"] in one for one in sources):
        yield f"the text is {', '.join(sources)} and not C4"
    if protocol["tokenizer"] not in str(lookup(tree, "data.tokenizer") or ""):
        yield "the tokenizer is not t5-base's, and perplexity counts its tokens"
    for key in ("seq_len", "global_batch_size"):
        if lookup(tree, f"train.{key}") != protocol[key]:
            yield f"train.{key} is {lookup(tree, f'train.{key}')} and not {protocol[key]}"
    size, shape = lookup(tree, "model.preset"), tree.get("model") or {}
    if size not in table["sizes"]:
        yield f"the model is {size}, and published are {', '.join(table['sizes'])}"
        return
    changed = [key for key in _SHAPE if shape.get(key, PRESETS[size][key]) != PRESETS[size][key]]
    if changed:
        yield f"the model's {', '.join(changed)} are not those of {size}"
    if recipe.steps != protocol["steps"][size]:
        yield f"the runs have {recipe.steps:,} updates and not {protocol['steps'][size]:,}"


def _rows(recipe: Recipe, ours: float | None) -> Iterator[dict[str, Any]]:
    table = _table()
    size, method = lookup(recipe.config, "model.preset"), lookup(recipe.config, "method")
    fewest, most = table["bias"]["batches"]
    for result in table["results"]:
        if result["method"] == method and size in result["perplexity"]:
            printed = result["perplexity"][size]
            yield {
                "recipe": recipe.label,
                "ours": ours,
                "published": printed,
                "unbiased": [printed ** (1 + 1 / most), printed ** (1 + 1 / fewest)],
                "source": result["source"],
            }


@cache
def _table() -> dict[str, Any]:
    text = resources.files("lowrise.compare").joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
