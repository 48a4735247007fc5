"""What a comparison compares, in words: model, text, batch, length, seeds, grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrise.compare.plan import AXES, Plan, Recipe, lookup
from lowrise.model.config import PRESETS
from lowrise.report.formatting import learning_rate, scientific, si


def about(plan: Plan) -> dict[str, dict[str, str]]:
    """What -> recipe -> how it was, as far as the recipes say."""
    facts = {recipe.label: _facts(plan, recipe) for recipe in plan.recipes}
    keys = dict.fromkeys(key for one in facts.values() for key in one)
    return {key: {label: one[key] for label, one in facts.items() if key in one} for key in keys}


def in_one_line(by_recipe: Mapping[str, str]) -> str:
    """The value that all share, or each value with the recipes that have it."""
    holders: dict[str, list[str]] = {}
    for label, value in by_recipe.items():
        holders.setdefault(value, []).append(label)
    if len(holders) == 1:
        return next(iter(holders))
    return "; ".join(f"{', '.join(labels)}: {value}" for value, labels in holders.items())


def model_in_words(tree: Mapping[str, Any]) -> str:
    """`nano: 2 layers, width 64, 2 heads`; empty where the recipe does not say."""
    model = tree.get("model") or {}
    shape = {**PRESETS.get(str(model.get("preset")), {}), **model}
    if not {"num_layers", "hidden_size", "num_heads"} <= shape.keys():
        return ""
    return (
        f"{model['preset']}: {shape['num_layers']} layers, width {shape['hidden_size']}, "
        f"{shape['num_heads']} heads"
    )


def text_in_words(tree: Mapping[str, Any]) -> str:
    """The sources and the vocabulary; empty where the recipe does not say."""
    data = tree.get("data") or {}
    source = data.get("source") or data.get("corpus")
    if not source:
        return ""
    sources = source if isinstance(source, str) else ", ".join(map(str, source))
    tokenizer = f"tokenizer {data['tokenizer']}" if data.get("tokenizer") else ""
    entries = f"{data['vocab_size']:,} entries" if data.get("vocab_size") and not tokenizer else ""
    return ", ".join(part for part in (sources, tokenizer or entries) if part)


def _facts(plan: Plan, recipe: Recipe) -> dict[str, str]:
    tree = recipe.config
    sequences, length = lookup(tree, "train.global_batch_size"), lookup(tree, "train.seq_len")
    batch = f"{recipe.tokens_per_step:,} tokens per step"
    if sequences and length:
        batch = f"{sequences} sequences of {length} tokens: {batch}"
    tokens = si(recipe.steps * recipe.tokens_per_step, digits=4)
    flops = scientific(recipe.steps * recipe.flops_per_step)
    facts = {
        "model": model_in_words(tree),
        "text": text_in_words(tree),
        "batch": batch,
        "budget": plan.allowance,
        "chosen size": _size_in_words(plan, recipe),
        "length": f"{recipe.steps:,} steps, {tokens} tokens, {flops} FLOPs",
        "seeds": f"{len(plan.seeds)} ({', '.join(map(str, plan.seeds))})",
        "grid": grid_in_words(plan, recipe),
    }
    return {key: value for key, value in facts.items() if value}


def _size_in_words(plan: Plan, recipe: Recipe) -> str:
    if plan.size is None or recipe.sized is None:
        return ""
    used = recipe.sized.used / plan.size.amount
    return f"{recipe.sized.words}, {plan.size.show(recipe.sized.used)} {plan.size.what} ({used:.0%})"


def grid_in_words(plan: Plan, recipe: Recipe) -> str:
    """The rates and warm-ups that are tried: `lr 0.01, 0.02; warm-up 0.05`."""
    parts = []
    for name, axis in AXES.items():
        factors = plan.factors(name)
        if name == "lr" or len(factors) > 1:
            values = (learning_rate(recipe.at(name, factor)) for factor in factors)
            parts.append(f"{axis.word} {', '.join(values)}")
    return "; ".join(parts)
