"""Aggregation on made-up summaries: statistics, verdicts, and nothing breaks on what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lowrise.compare.plan import Budget, Plan, Recipe, RunKey, RunSpec
from lowrise.compare.report import seed_band, to_html, to_markdown, write_comparison
from lowrise.compare.table import Comparison, Statistic, aggregate, differing_settings, welch
from lowrise.compare.tuning import Outcome


def compare(losses: dict[str, list[float | None]], **summary: float) -> Comparison:
    """One grid point, one seed for each loss; None is a diverged seed."""
    seeds = tuple(range(max(len(found) for found in losses.values())))
    recipes = tuple(Recipe(label, f"{label}.toml", 0.01, None, 10, 100, 1e6) for label in losses)
    plan = Plan(Budget("tokens", 1000.0), recipes, seeds, (1.0,))
    outcomes, specs = {}, {}
    for label, found in losses.items():
        for seed, loss in enumerate(found):
            key = RunKey(label, 1.0, 1.0, seed)
            specs[key] = RunSpec(key, f"{label}-{seed}", f"{label}.toml", {}, "ab", 10, 1e7)
            full = {"method": label, "val_loss": loss, **summary}
            outcomes[key] = (
                Outcome("completed", loss, full) if loss is not None else Outcome("diverged", error="<NaN>")
            )
    return aggregate(plan, specs, outcomes)


def test_welch_is_scipys() -> None:
    a, b = [3.1, 3.2, 3.15], [3.0, 3.4, 3.3, 3.35]
    reference = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    _, low, high = welch(Statistic.of(a), Statistic.of(b))
    assert (low, high) == pytest.approx(
        (reference.low, reference.high), rel=1e-9
    )  # the same formula in float64


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ([2.90, 2.91, 2.92], "better"),
        ([3.10, 3.11, 3.12], "worse"),
        ([2.99, 3.01, 3.03], "no difference shown"),
        ([2.90, 2.91, None], "undecided: a seed was lost"),
        ([None, None, None], "undecided: no result"),
    ],
)
def test_the_verdict_follows_the_rule(second: list[float | None], verdict: str) -> None:
    comparison = compare({"first": [3.00, 3.01, 3.02], "second": second})
    assert comparison.rows[0].difference.verdict == "reference"
    assert comparison.rows[1].difference.verdict == verdict


def test_one_seed_decides_nothing() -> None:
    row = compare({"first": [3.0], "second": [2.0]}).rows[1]
    assert row.difference.verdict == "undecided: one seed"
    assert row.val_loss.sd is None


def test_two_standard_errors_are_not_enough_at_three_seeds() -> None:
    # A difference of 2.3 standard errors: "more than two" would call it, Student's t at 4 degrees of
    # freedom does not.
    row = compare({"first": [3.0, 3.1, 3.2], "second": [2.81, 2.91, 3.01]}).rows[1]
    error = 0.1 * np.sqrt(2 / 3)
    assert 2 < abs(row.difference.mean or 0) / error < 2.776
    assert row.difference.verdict == "no difference shown"


def test_costs_are_medians_and_ratios_go_to_the_first() -> None:
    comparison = compare(
        {"first": [3.0, 3.1], "second": [3.2, 3.3]}, tokens_per_second=100.0, params_total=10
    )
    assert comparison.rows[1].costs["tokens_per_second"] == 100.0
    assert comparison.rows[1].ratios["params_total"] == 1.0
    assert comparison.rows[1].ratios["peak_memory_bytes"] is None


def test_every_file_is_written_when_nearly_everything_is_missing(tmp_path: Path) -> None:
    comparison = compare({"first": [None], "a|<b>": [3.0]}, tokens=float("nan"))
    write_comparison(tmp_path, comparison, tmp_path / "runs", {})
    document = json.loads(
        (tmp_path / "compare.json").read_text(), parse_constant=pytest.fail
    )  # no NaN in JSON
    assert document["rows"][0]["val_loss"]["mean"] is None
    assert "a\\|<b>" in to_markdown(comparison)
    page = to_html(comparison, tmp_path / "runs", {})
    assert "<b>: " not in page
    assert "a|&lt;b&gt;" in page
    assert "1 diverged" in page


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
