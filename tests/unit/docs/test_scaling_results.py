"""The small scaling sweep: the fit that is kept is the fit of the points that are kept, and docs/scaling.md
shows it.
"""

import json
import re
from pathlib import Path

import pytest

from lowrise.scaling.fit import FitRules, document, fit_study
from lowrise.scaling.points import read_points

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "scaling"
NAMES = {"spectron": "Spectron", "lowrank": "low-rank AdamW", "muon": "Muon, dense"}


@pytest.fixture(scope="module")
def kept():
    return json.loads((RESULTS / "fit.json").read_text())


def test_the_fit_is_that_of_the_points(kept):
    points, left_out = read_points([str(RESULTS / "points.csv")])
    assert not left_out
    # The estimates do not depend on the bootstrap's draws.
    fitted = document(fit_study(points, FitRules(draws=100, reference=kept["reference"])))
    for method, entry in kept["methods"].items():
        now = fitted["methods"][method]
        assert now["points"] == entry["points"]
        for kind in ("isoflop", "parametric"):
            for exponent in ("params_exponent", "tokens_exponent"):
                assert now[kind][exponent][0] == pytest.approx(entry[kind][exponent][0], rel=1e-4)


@pytest.mark.parametrize("method", NAMES)
def test_the_page_shows_the_fit(method, kept):
    page = (ROOT / "docs" / "scaling.md").read_text()
    row = re.search(rf"^\| {NAMES[method]} \|(.*)\|$", page, re.MULTILINE)
    assert row
    entry = kept["methods"][method]
    isoflop, parametric = entry["isoflop"], entry["parametric"]
    wanted = [isoflop["params_exponent"], isoflop["tokens_exponent"], parametric["params_exponent"]]
    shown = [[float(x) for x in re.findall(r"-?\d+\.\d+", cell)] for cell in row[1].split("|")[:3]]
    assert shown == [[round(x, 3) for x in three] for three in wanted]
