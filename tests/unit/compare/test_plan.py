"""Budgets, settings, labels, and the search as a pure function of outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lowrise.compare.budget import Budget, parse_budgets
from lowrise.compare.options import CompareConfig
from lowrise.compare.outcomes import Outcome
from lowrise.compare.plan import (
    Plan,
    Recipe,
    RunKey,
    build_plan,
    curve_settings,
    parse_factors,
    parse_settings,
    resolve,
    unique_labels,
)
from lowrise.compare.tuning import expected_runs, required_runs, tune
from lowrise.config import load
from lowrise.errors import UsageError


@dataclass(frozen=True)
class Steps:
    tokens_per_step: int = 1000
    flops_per_token: float = 2e6
    optimizer_flops_per_step: float = 5e8


@dataclass(frozen=True)
class Resolved:
    tree: dict[str, Any]
    hash: str = "0123456789abcdef"

    def to_dict(self) -> dict[str, Any]:
        return self.tree


def plan_of(*labels: str, seeds: int = 2, lrs: tuple[float, ...] = (0.5, 1.0, 2.0), **options: Any) -> Plan:
    recipes = tuple(Recipe(label, f"{label}.toml", 0.01, 0.001, 10, 1000, 1e9) for label in labels)
    return Plan(Budget("tokens", 1e4), recipes, tuple(range(seeds)), lrs, **options)


def grid_outcomes(label: str, losses: dict[float, float | str | None]) -> dict[RunKey, Outcome]:
    outcomes = {}
    for lr, loss in losses.items():
        key = RunKey(label, lr, 1.0, 0)
        if isinstance(loss, float):
            outcomes[key] = Outcome("completed", loss)
        else:
            outcomes[key] = Outcome("diverged" if loss is None else "failed")
    return outcomes


@pytest.mark.parametrize(
    ("text", "steps", "name"),
    [
        ("tokens=2M", 2000, "tokens-2M"),
        ("tokens=2_000_001", 2001, "tokens-2.000001M"),
        ("tokens=500", 1, "tokens-500"),
        ("flops=2.5e12", 1000, "flops-2.5e12"),  # 1000 tokens x 2e6 + 5e8 of the optimizer are 2.5e9 a step
        ("flops=1T", 400, "flops-1e12"),
    ],
)
def test_a_budget_becomes_the_first_number_of_steps_that_reaches_it(text: str, steps: int, name: str) -> None:
    budget = Budget.parse(text)
    assert budget.steps(Steps()) == steps
    assert budget.name == name


@pytest.mark.parametrize(
    "text", ["tokens", "tokens=", "tokens=-1", "tokens=2X", "tokens=nan", "steps=3", "", "flops=0"]
)
def test_an_impossible_budget_is_a_sentence_with_the_remedy(text: str) -> None:
    with pytest.raises(UsageError, match="Write --budget tokens=2M"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("texts", "length", "size"),
    [
        (["bytes=8MB"], None, "bytes-8M"),
        (["inference=4MiB"], None, "inference-4.194304M"),
        (["tokens=2M", "params=1.5M"], "tokens-2M", "params-1.5M"),
        (["params=900", "seconds=10min"], "seconds-600", "params-900"),
        (["seconds=1.5h"], "seconds-5400", None),
    ],
)
def test_a_length_and_a_size_go_together(texts: list[str], length: str | None, size: str | None) -> None:
    found = parse_budgets(texts)
    assert tuple(one and one.name for one in found) == (length, size)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["tokens=1M", "flops=1e9"], "two budgets of length"),
        (["params=1M", "bytes=1M"], "two budgets of size"),
        ([], "is empty"),
        (["seconds=5M"], "needs a positive number"),
        (["bytes=8Mi B"], "needs a positive number"),
    ],
)
def test_budgets_that_contradict_each_other_are_refused(texts: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_budgets(texts)


def test_factors_are_sorted_and_positive() -> None:
    assert parse_factors("2, 0.5,1,1", "--lr-factors") == (0.5, 1.0, 2.0)
    for text in ("", "1,x", "0,1", "-1", "inf"):
        with pytest.raises(UsageError, match="--lr-factors"):
            parse_factors(text, "--lr-factors")


def test_settings_have_toml_values_and_cannot_break_the_comparison() -> None:
    assert parse_settings(("a.b=3", "a.c=[1, 2]", "d.e=some text", "f.g=true")) == (
        ("a.b", 3),
        ("a.c", [1, 2]),
        ("d.e", "some text"),
        ("f.g", True),
    )
    with pytest.raises(UsageError, match="has no key"):
        parse_settings(("train.lr",))
    with pytest.raises(UsageError, match="Use --budget"):
        parse_settings(("train.steps=3",))


def test_labels_stay_apart() -> None:
    assert unique_labels(["a/x.toml", "a/y.toml"]) == ("x", "y")
    assert unique_labels(["a/x.toml", "b/x.toml"]) == ("a-x", "b-x")
    with pytest.raises(UsageError, match="named twice"):
        unique_labels(["a/x.toml", "./a/x.toml"])


def test_a_plan_is_checked_before_anything_runs() -> None:
    def load(path: str, overrides: dict[str, Any]) -> Resolved:
        return Resolved({"optimizer": {"lr": 0.01}})

    config = CompareConfig(recipes=("a.toml",), budget=("tokens=10k",), out="out")
    plan = build_plan(config, load, lambda _: Steps())
    assert (plan.seeds, plan.recipes[0].steps, plan.recipes[0].other_lr) == ((0, 1, 2), 10, None)
    for wrong in (
        {"recipes": ()},
        {"seeds": 0},
        {"workers": 0},
        {"max_extensions": -1},
        {"other_lr_factors": "1,2"},
    ):
        with pytest.raises(UsageError):
            build_plan(CompareConfig(**{**vars(config), **wrong}), load, lambda _: Steps())
    with pytest.raises(UsageError, match=r"no positive optimizer\.lr"):
        build_plan(config, lambda path, overrides: Resolved({}), lambda _: Steps())


def test_a_run_is_named_by_what_it_is() -> None:
    plan = plan_of("x", overrides=(("data.corpus", "wiki"),))
    seen = {}

    def load(path: str, overrides: dict[str, Any]) -> Resolved:
        seen.update(overrides)
        return Resolved({})

    spec = resolve(plan, RunKey("x", 3.0, 2.0, 1), load)
    assert spec.name == "x-lr0.03-other0.002-seed1-0123456789"
    assert seen == {
        "data.corpus": "wiki",
        "train.steps": 10,
        "seed": 1,
        "optimizer.lr": 0.03,  # exactly: 0.01 * 3 in binary is not
        "other.lr": 0.002,
    }


def test_grids_of_all_recipes_come_before_any_seed() -> None:
    plan = plan_of("x", "y")
    assert [(k.recipe, k.lr_factor) for k in required_runs(plan, {})] == [
        (label, lr) for label in "xy" for lr in (0.5, 1.0, 2.0)
    ]
    assert expected_runs(plan, {}) == 8
    outcomes = grid_outcomes("x", {0.5: 3.1, 1.0: 3.0, 2.0: 3.2})
    runs = required_runs(plan, outcomes)
    assert runs[-1] == RunKey("x", 1.0, 1.0, 1)
    assert len(runs) == 7


@pytest.mark.parametrize(
    ("losses", "best", "edges"),
    [
        ({0.5: 3.1, 1.0: 3.0, 2.0: 3.2}, 1.0, ()),
        ({0.5: 3.0, 1.0: 3.1, 2.0: 3.2}, 0.5, ("lowest lr",)),
        ({0.5: 3.2, 1.0: 3.1, 2.0: 3.0}, 2.0, ("highest lr",)),
        ({0.5: 3.1, 1.0: 3.0, 2.0: None}, 1.0, ()),  # divergence is evidence
        ({0.5: 3.1, 1.0: 3.0, 2.0: "crash"}, 1.0, ("highest lr",)),  # a crash is none
        ({0.5: None, 1.0: "crash", 2.0: None}, None, ()),
    ],
)
def test_the_lowest_loss_is_chosen_and_edges_are_named(
    losses: dict[float, float | str | None], best: float | None, edges: tuple[str, ...]
) -> None:
    tuning = tune(plan_of("x"), "x", grid_outcomes("x", losses))
    assert tuning.done
    assert (tuning.best.lr_factor if tuning.best else None) == best
    assert tuning.edges == edges


def test_extension_goes_on_with_the_same_ratio_and_stops_at_the_limit() -> None:
    plan = plan_of("x", max_extensions=2)
    outcomes = grid_outcomes("x", {0.5: 3.2, 1.0: 3.1, 2.0: 3.0})
    assert [k.lr_factor for k in required_runs(plan, outcomes)] == [0.5, 1.0, 2.0, 4.0]
    outcomes |= grid_outcomes("x", {4.0: 2.9})
    outcomes |= grid_outcomes("x", {8.0: 2.8})
    tuning = tune(plan, "x", outcomes)
    assert (tuning.done, tuning.extensions, tuning.edges) == (True, 2, ("highest lr",))


def test_two_rates_are_searched_as_a_product() -> None:
    plan = plan_of("x", lrs=(1.0, 2.0), other_lr_factors=(1.0, 3.0))
    losses = {(1.0, 1.0): 3.0, (1.0, 3.0): 2.9, (2.0, 1.0): 3.1, (2.0, 3.0): 3.2}
    outcomes = {RunKey("x", lr, other, 0): Outcome("completed", loss) for (lr, other), loss in losses.items()}
    tuning = tune(plan, "x", outcomes)
    assert tuning.best == RunKey("x", 1.0, 3.0, 0)
    assert tuning.edges == ("lowest lr", "highest other lr")


def tree_with(every: int, tokens: int = 0) -> dict[str, Any]:
    return {"eval": {"every": every, "tokens": tokens}}


@pytest.mark.parametrize(
    ("tree", "steps", "set_by_user", "settings"),
    [
        # 40 steps, evaluated every 100: ten points instead of none, each of at least 8,192 tokens.
        (tree_with(100), 40, {}, {"eval.every": 4, "eval.tokens": 8192}),
        (tree_with(0), 40, {}, {"eval.every": 4, "eval.tokens": 8192}),
        (tree_with(100, 5000), 40, {}, {"eval.every": 4}),  # the recipe's own part of the text stays
        (tree_with(100), 500, {}, {"eval.every": 50, "eval.tokens": 60_000}),  # 6% of a million tokens
        (tree_with(100), 1000, {}, {}),
        (tree_with(100), 40, {"eval.every": 0}, {}),
        ({}, 40, {}, {}),
        (tree_with(100), 5, {}, {"eval.every": 1, "eval.tokens": 8192}),
    ],
)
def test_short_runs_are_evaluated_often_enough_for_a_curve(
    tree: dict[str, Any], steps: int, set_by_user: dict[str, Any], settings: dict[str, Any]
) -> None:
    tokens = 1_000_000 if steps == 500 else 10_000
    assert curve_settings(tree, steps, tokens, tuple(set_by_user.items())) == settings


def test_evaluating_more_often_is_the_same_run() -> None:
    often = load(None, {"eval.every": 3, "eval.tokens": 100})
    assert often.hash == load(None).hash
