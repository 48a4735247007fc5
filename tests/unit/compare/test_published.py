"""Published numbers stand beside ours only where the protocol is the same, and with their bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrise.compare.budget import Budget
from lowrise.compare.plan import Plan, Recipe
from lowrise.compare.published import beside, deviations
from lowrise.config import load
from lowrise.methods import METHODS
from lowrise.runs.recipes import recipe as recipe_of


def plan_of(folder: Path, method: str, steps: int = 10000, **changed: Any) -> Plan:
    path = folder / f"{method}.toml"
    path.write_text(recipe_of(method, "60m", ()))
    config = load(path, {"data.tokenizer": "t5-base/tokenizer.json"} | changed)
    recipe = Recipe(method, str(path), 0.01, 0.001, steps, 131072, 1e12, config.to_dict())
    return Plan(Budget("tokens", 1.3e9), (recipe,), (0, 1, 2), (1.0,))


def test_the_same_protocol_stands_beside_ours(tmp_path: Path) -> None:
    found = beside(plan_of(tmp_path, "muon"), {"muon": 29.5})
    (row,) = found.rows
    assert (row["published"], row["ours"]) == (28.86, 29.5)
    assert "SCALE" in row["source"]
    assert "n + 1" in found.note
    assert len(beside(plan_of(tmp_path, "adamw"), {"adamw": None}).rows) == 2


def test_the_bias_is_that_of_a_division_by_one_too_many(tmp_path: Path) -> None:
    # The dossier's own example: with n = 182 a printed 34.06 is 34.73; n = 364 and 91 lie around it.
    row = next(r for r in beside(plan_of(tmp_path, "adamw"), {}).rows if r["published"] == 34.06)
    low, high = row["unbiased"]
    assert (round(low, 2), round(high, 2)) == (34.39, 35.41)
    assert low < 34.73 < high


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"data.source": "builtin"}, "the text is builtin and not C4"),
        ({"data.tokenizer": None}, "the tokenizer is not t5-base's"),
        ({"train.seq_len": 512}, "train.seq_len is 512 and not 256"),
        ({"train.global_batch_size": 256}, "train.global_batch_size is 256 and not 512"),
        ({"model.hidden_size": 768}, "the model's hidden_size are not those of 60m"),
        ({"model.preset": "nano"}, "the model is nano"),
    ],
)
def test_any_departure_is_named_and_no_number_is_shown(
    changed: dict[str, Any], why: str, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, "muon", **changed)
    assert any(why in reason for reason in deviations(plan.recipes[0]))
    found = beside(plan, {})
    assert not found.rows
    assert why in found.note


def test_another_length_is_another_protocol(tmp_path: Path) -> None:
    assert "5,000 updates and not 10,000" in beside(plan_of(tmp_path, "muon", steps=5000), {}).note


def test_every_method_of_the_table_is_ours() -> None:
    from lowrise.compare.published import _table

    assert {result["method"] for result in _table()["results"]} <= METHODS.keys()
    for result in _table()["results"]:
        assert result["perplexity"].keys() <= set(_table()["sizes"])
        assert result["source"]
