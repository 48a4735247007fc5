"""Aggregation on made-up summaries: statistics, verdicts, and nothing breaks on what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lowrise.compare.budget import Budget
from lowrise.compare.outcomes import Outcome, RunSpec
from lowrise.compare.page import seed_band, to_html
from lowrise.compare.plan import Plan, Recipe, RunKey
from lowrise.compare.report import to_markdown, write_comparison
from lowrise.compare.rows import Comparison
from lowrise.compare.table import aggregate, differing_settings

LRS = (0.5, 1.0, 2.0)


def compare(
    losses: dict[str, list[float | None]], chosen: float = 1.0, plan: dict | None = None, **summary: float
) -> Comparison:
    """Three grid points, of which `chosen` is the best; one seed for each loss, None is a diverged one."""
    seeds = tuple(range(max(len(found) for found in losses.values())))
    recipes = tuple(Recipe(label, f"{label}.toml", 0.01, None, 10, 100, 1e6) for label in losses)
    made = Plan(Budget("tokens", 1000.0), recipes, seeds, LRS, **(plan or {}))
    outcomes, specs = {}, {}
    for label, found in losses.items():
        runs = [(lr, 0, 9.0 + lr) for lr in LRS if lr != chosen]
        runs += [(chosen, seed, loss) for seed, loss in enumerate(found)]
        for lr, seed, loss in runs:
            key = RunKey(label, lr, 1.0, seed)
            specs[key] = RunSpec(key, f"{label}-{lr}-{seed}", f"{label}.toml", {}, "ab", 10, 1e7)
            full = {"method": label, "val_loss": loss, **summary}
            outcomes[key] = (
                Outcome("completed", loss, full) if loss is not None else Outcome("diverged", error="<NaN>")
            )
    return aggregate(made, specs, outcomes)


@pytest.mark.parametrize(
    ("second", "verdict", "because"),
    [
        ([2.90, 2.91, 2.92], "better", ""),
        ([3.10, 3.11, 3.12], "worse", ""),
        ([2.99, 3.01, 3.03], "no difference shown", ""),
        ([2.90, 2.91, None], "undecided", "1 seed(s) of second diverged or failed"),
    ],
)
def test_the_verdict_follows_the_rule(second: list[float | None], verdict: str, because: str) -> None:
    comparison = compare({"first": [3.00, 3.01, 3.02], "second": second})
    assert comparison.rows[0].difference.verdict == "reference"
    assert comparison.rows[1].difference.verdict == verdict
    assert comparison.rows[1].difference.because == because


def test_without_a_result_nothing_is_said() -> None:
    row = compare({"first": [None, None, None], "second": [2.9, 2.9, 2.9]}, chosen=1.0).rows[1]
    assert row.difference.verdict == "undecided"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds: int) -> None:
    row = compare({"first": [3.0, 3.001][:seeds], "second": [2.0, 2.001][:seeds]}).rows[1]
    assert row.difference.verdict == "undecided"
    assert row.difference.because == f"first has {seeds} seed(s), fewer than 3"


@pytest.mark.parametrize(("chosen", "edge"), [(0.5, "lowest lr"), (2.0, "highest lr")])
def test_a_choice_at_an_edge_decides_nothing(chosen: float, edge: str) -> None:
    row = compare({"first": [3.0, 3.01, 3.02], "second": [2.0, 2.01, 2.02]}, chosen=chosen).rows[1]
    assert row.difference.verdict == "undecided"
    assert row.difference.because == f"the choice of first lies at the edge of its grid ({edge} tried)"
    assert row.difference.high is not None
    assert row.difference.high < 0, "the interval is shown all the same"


def test_two_standard_errors_are_not_enough_at_three_seeds() -> None:
    # A difference of 2.3 standard errors: "more than two" would call it, Student's t at 4 degrees of
    # freedom does not.
    row = compare({"first": [3.0, 3.1, 3.2], "second": [2.81, 2.91, 3.01]}).rows[1]
    error = 0.1 * np.sqrt(2 / 3)
    assert 2 < abs(row.difference.mean or 0) / error < 2.776
    assert row.difference.verdict == "no difference shown"


def test_the_paired_test_decides_where_it_was_asked_for() -> None:
    # Seeds spread widely, the differences hardly: Welch sees nothing, the pairs do.
    losses = {"first": [3.0, 3.2, 3.4], "second": [2.95, 3.152, 3.348]}
    by_welch = compare(losses).rows[1].difference
    by_seed = compare(losses, plan={"test": "paired"}).rows[1].difference
    assert (by_welch.verdict, by_seed.verdict) == ("no difference shown", "better")
    assert by_welch.paired == by_seed.paired
    assert by_seed.low == by_seed.paired.low


def test_holm_takes_back_what_one_of_many_would_have_been() -> None:
    # p = 0.030 for the second; of three comparisons that is no longer below 0.05.
    losses = {
        "first": [3.0, 3.1, 3.2],
        "second": [2.7, 2.8, 2.9],
        "third": [3.0, 3.1, 3.2],
        "fourth": [3.01, 3.1, 3.2],
    }
    plain = compare(losses).rows[1].difference
    corrected = compare(losses, plan={"correction": "holm"}).rows[1].difference
    assert (plain.verdict, corrected.verdict) == ("better", "no difference shown")
    assert corrected.p_corrected == pytest.approx(3 * plain.p)


def test_the_power_line_says_what_is_seen_and_what_the_observed_would_take() -> None:
    (line,) = compare({"first": [3.0, 3.1, 3.2], "second": [2.95, 3.05, 3.15]}).power
    # sd 0.1, 3 seeds a side: the pooled t test would see 0.31, Welch's, which estimates its degrees of
    # freedom, 0.35.
    assert "with 3 seeds a true difference of 0.35 is seen 8 times in 10" in line
    assert "the observed -0.0500 takes about 64 seeds" in line


def test_costs_are_medians_and_ratios_go_to_the_first() -> None:
    comparison = compare(
        {"first": [3.0, 3.1], "second": [3.2, 3.3]}, tokens_per_second=100.0, tokens=500.0, params_total=10
    )
    assert comparison.rows[1].costs["train_seconds"] == 5.0
    assert comparison.rows[1].costs["tokens_per_second"] == 100.0
    assert comparison.rows[1].ratios["params_total"] == 1.0
    assert comparison.rows[1].ratios["peak_memory_bytes"] is None


def test_every_file_is_written_when_nearly_everything_is_missing(tmp_path: Path) -> None:
    comparison = compare({"first": [None], "a|<b>": [3.0]}, tokens=float("nan"))
    write_comparison(tmp_path, comparison, tmp_path / "runs", {})
    document = json.loads(
        (tmp_path / "compare.json").read_text(), parse_constant=pytest.fail
    )  # no NaN in JSON
    assert document["rows"][0]["costs"]["tokens"] is None
    assert "a\\|<b>" in to_markdown(comparison)
    page = to_html(comparison, tmp_path / "runs", {})
    assert "<b>: " not in page
    assert "a|&lt;b&gt;" in page
    assert "1 diverged" in page


def test_a_note_on_several_recipes_is_said_once() -> None:
    names = ("a", "b", "c", "d", "e")
    particular = compare({name: [3.0] for name in names})
    notes = particular.notes[len(particular.rules) :]
    undecided = [note for note in notes if "undecided" in note]
    assert undecided == ["every recipe but a: undecided, because a has 1 seed(s), fewer than 3."]
    few = compare({"a": [3.0], "b": [3.0], "c": [3.0]}).notes
    assert "b, c: undecided, because a has 1 seed(s), fewer than 3." in few
    own = compare({"a": [3.0, 3.1], "b": [3.0], "c": [3.0]}).notes
    assert "b: undecided, because 1 run(s) of b are still to do." in own
    assert "c: undecided, because 1 run(s) of c are still to do." in own


def test_settings_that_differ_are_listed_and_different_data_is_said() -> None:
    configs = {"x": {"data": {"corpus": "a"}, "same": 1}, "y": {"data": {"corpus": "b"}, "same": 1}}
    assert differing_settings(configs) == {"data.corpus": {"x": "a", "y": "b"}}
    recipes = tuple(Recipe(k, f"{k}.toml", 0.01, None, 10, 100, 1e6, config) for k, config in configs.items())
    comparison = aggregate(Plan(Budget("tokens", 1.0), recipes, (0,), (1.0,)), {}, {})
    assert any("differ in data.corpus" in note for note in comparison.notes)


def test_a_band_is_drawn_where_all_seeds_were_evaluated() -> None:
    a = (np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 3.0]))
    b = (np.array([1.0, 3.0]), np.array([7.0, 3.0]))
    x, mean, sd = seed_band([a, b])
    assert x.tolist() == [1.0, 3.0]
    assert mean.tolist() == [6.0, 3.0]
    assert sd.tolist() == pytest.approx([2**0.5, 0.0])


def test_the_page_names_what_was_compared_and_draws_the_intervals(tmp_path: Path) -> None:
    comparison = compare({"first": [3.00, 3.01, 3.02], "second": [2.90, 2.91, 2.92]})
    page = to_html(comparison, tmp_path, {})
    for words in ("What was compared", "1.00 k tokens", "100 tokens per step", "lr 0.005, 0.01, 0.02"):
        assert words in page
    assert "second, Welch" in page
    assert "second, paired" in page
    assert ">better</text>" in page
    text = to_markdown(comparison)
    assert "- seeds: 3 (0, 1, 2)" in text
    assert "is seen 8 times in 10" in text
