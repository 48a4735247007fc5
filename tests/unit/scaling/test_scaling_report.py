"""The study as a document and as a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic_scaling import study

from lowrise.errors import UsageError
from lowrise.report.forest import Estimate, forest
from lowrise.scaling.fit import PUBLISHED, Study, document, fit_study, with_interval
from lowrise.scaling.isoflop import Interval
from lowrise.scaling.options import FitRules
from lowrise.scaling.report import to_html
from lowrise.scaling.show import write

RULES = FitRules(draws=200)


def two_methods() -> Study:
    rng = np.random.default_rng(0)
    points = study(rng, method="lowrank") + study(rng, method="<b>new</b>", times=0.7)
    return fit_study(points, RULES, ["one: diverged."])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "path", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "path", "circle", "rect"):
            assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_of_one_file() -> None:
    page = to_html(two_methods())
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert "<b>new" not in page
    assert "://" not in "".join(str(attrs) for _, attrs in tags.seen)
    assert [tag for tag, _ in tags.seen].count("svg") == 7  # 2 curves, 2 optima, losses, exponents, shares
    for text in ("0.479", "0.521", "needs 0.7", "of lowrank&#x27;s FLOPs", "one: diverged."):
        assert text in page, text
    assert "nan" not in page.lower().replace("nanograms", "")


def test_the_document_is_json_with_the_published_beside_ours(tmp_path: Path) -> None:
    found = two_methods()
    write(found, tmp_path, report=True)
    assert {p.name for p in tmp_path.iterdir()} == {"points.csv", "fit.json", "report.html"}
    value = json.loads((tmp_path / "fit.json").read_text())
    assert value["published"][0]["params_exponent"] == 0.479
    assert value["published"][0]["tokens_exponent"] == 0.521
    ours = value["methods"]["lowrank"]["isoflop"]["params_exponent"]
    assert ours[1] < ours[0] < ours[2]
    assert len(value["methods"]["lowrank"]["isoflop"]["budgets"]) == 4
    (share,) = value["multipliers"]
    assert share["times"][1] < share["times"][0] < share["times"][2]
    write(found, tmp_path / "again", report=True)
    for name in ("points.csv", "fit.json", "report.html"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_published_exponents_add_up() -> None:
    """C = 6 N D: what is published for N and D adds to one."""
    assert all(n + d == pytest.approx(1.0, abs=0.001) for _, n, d, _ in PUBLISHED)


def test_a_study_of_few_points_says_what_is_missing() -> None:
    rng = np.random.default_rng(0)
    few = fit_study(study(rng, budgets=(1e18,), sizes=3), RULES)
    page = to_html(few)
    assert few.reference is None
    assert "no intervals; a fourth size at a budget gives one." in page
    assert "The parametric fit needs six points" in page
    assert document(few)["methods"]["one"]["parametric"] is None
    assert "–" in page


def test_a_minimum_outside_and_one_that_wanders_are_told() -> None:
    points = study(np.random.default_rng(0), budgets=(1e18, 3e18, 9e18), sizes=12, span=16.0, noise=1e-6)
    first, second, third = (sorted(g, key=lambda p: p.params) for g in np.reshape(points, (3, 12)))
    notes = fit_study([*first[:8], *second[4:], *third[:4]], RULES).methods["one"].notes
    assert any("9e+18 FLOPs: the minimum lies outside the sizes" in note for note in notes)
    assert any("wanders over the sizes" in note for note in notes)
    assert not fit_study(points, RULES).methods["one"].notes


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (FitRules(level=1.0), "--level 1"),
        (FitRules(draws=10), "--draws 10"),
        (FitRules(huber=0.0), "--huber 0"),
        (FitRules(bootstrap_seed=-1), "--bootstrap-seed -1"),
        (FitRules(reference="nobody"), "there is no method 'nobody'"),
    ],
)
def test_wrong_rules_are_told(rules: FitRules, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fit_study(study(np.random.default_rng(0)), rules)


def test_intervals_in_words() -> None:
    assert with_interval(Interval(0.4791, 0.4551, 0.5029)) == "0.479 [0.455, 0.503]"
    assert with_interval(Interval(0.5)) == "0.5"
    assert with_interval(Interval(0.5, -np.inf, np.inf)) == "0.5 [open]"
    assert with_interval(None) == "–"


def test_a_forest_has_a_row_each_and_open_ends_at_the_edge() -> None:
    rows = [Estimate("a", 0.5, 0.4, 0.6), Estimate("b", 0.45, -np.inf, np.inf), Estimate("c", np.nan)]
    svg = forest(rows, x_label="exponent", mark=0.48)
    assert svg.count("<circle") == 2
    assert svg.count('class="line"') == 2
    assert "inf" not in svg.replace("[-inf, inf]", "")
    assert "No values" in forest([Estimate("c", np.nan)], x_label="exponent")
