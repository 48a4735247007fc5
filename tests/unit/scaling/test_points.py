"""Tables, sweeps and runs as points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_scaling import study

from lowrise.errors import UsageError
from lowrise.scaling.points import by_method, read_points, to_csv


def test_a_table_goes_out_and_comes_back(tmp_path: Path) -> None:
    points = study(np.random.default_rng(0), method="a") + study(np.random.default_rng(1), method="b")
    path = tmp_path / "points.csv"
    path.write_text(to_csv(points))
    found, left_out = read_points([str(path)])
    assert not left_out
    assert [p.method for p in found] == [p.method for p in points]
    for name in ("flops", "params", "tokens", "loss", "budget"):
        np.testing.assert_allclose([getattr(p, name) for p in found], [getattr(p, name) for p in points])


def test_other_words_for_columns_and_what_follows_from_the_rest(tmp_path: Path) -> None:
    """Column names as others write them; C = 6 N D where one of the three is missing."""
    table = tmp_path / "others.csv"
    table.write_text("Model Size,Training FLOP,final_loss\n1e8,6e17,3.5\n2e8,6.1e17,3.4\n4e8,5.9e17,3.6\n")
    found, _ = read_points([str(table)])
    assert [p.tokens for p in found] == pytest.approx([1e9, 6.1e17 / 1.2e9, 5.9e17 / 2.4e9])
    assert {p.method for p in found} == {"all"}
    assert len({p.budget for p in found}) == 1  # neighbours within a fifth are one budget
    table.write_text("N,D,loss\n100,2_000,3.5\n")
    (one,), _ = read_points([str(table)])
    assert (one.params, one.tokens, one.flops) == (100.0, 2000.0, 1.2e6)


def test_json_is_a_list_or_has_points(tmp_path: Path) -> None:
    rows = [{"n": 100, "d": 2000, "loss": 3.0}, {"n": 200, "d": 1000, "loss": 3.1}]
    for value in (rows, {"points": rows}):
        path = tmp_path / "points.json"
        path.write_text(json.dumps(value))
        assert len(read_points([str(path)])[0]) == 2


def test_budgets_are_told_apart_by_their_flops(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    flops = (0.95e9, 1.0e9, 1.1e9, 2.0e9, 2.1e9, 4e9)
    path.write_text("params,flops,loss\n" + "".join(f"100,{c},3.0\n" for c in flops))
    found, _ = read_points([str(path)])
    assert [sum(p.budget == b for p in found) for b in sorted({p.budget for p in found})] == [3, 2, 1]


def test_a_run_is_a_point(tmp_path: Path) -> None:
    summary = {
        "method": "muon", "train_flops": 6e9, "params_non_embedding": 1000, "params_total": 3000,
        "tokens": 1e6, "val_loss": 3.25, "status": "completed",
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (point,), _ = read_points([str(tmp_path)])
    assert (point.method, point.params, point.loss, point.budget) == ("muon", 1000.0, 3.25, 6e9)
    assert read_points([str(tmp_path)], "total")[0][0].params == 3000.0
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    with pytest.raises(UsageError, match="no row has a loss"):
        read_points([str(tmp_path)])


def test_rows_without_a_loss_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("params,tokens,loss,status,name\n1,2,3,completed,a\n1,2,,,b\n1,2,3,diverged,c\n")
    found, left_out = read_points([str(path)])
    assert len(found) == 1
    assert left_out == ["b: no loss.", "c: diverged."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("params,tokens\n1,2\n", "row 2: there is no column loss"),
        ("loss,tokens\n1,2\n", "row 2: there is no column params"),
        ("loss,params\n1,2\n", r"row 2: there is no column tokens \(or flops\)"),
        ("params,tokens,loss\n1,2\n", "row 2: 2 cells under 3 column names"),
        ("params,tokens,loss\n1,2,3\n1,-2,3\n", "row 3: tokens is '-2'"),
        ("params,tokens,loss\n1,2,inf\n", "row 2: loss is 'inf'"),
        ("params,tokens,loss\nmany,2,3\n", "row 2: params is 'many'"),
        ("params,tokens,loss,budget\n1,2,3,0\n", "row 2: budget is '0'"),
        ("params,tokens,flops,loss\n1,,,3\n", "row 2: tokens and flops are both empty"),
        ("params,tokens,loss\n", "no row has a loss"),
    ],
)
def test_wrong_tables_name_the_row(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_points([str(path)])


def test_places_without_points_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no sweep"):
        read_points([str(tmp_path)])
    for name in ("nothing.csv", "nothing.json"):
        with pytest.raises(UsageError, match="There is no table at"):
            read_points([str(tmp_path / name)])
    with pytest.raises(UsageError, match="There are no points"):
        read_points([])
    damaged = tmp_path / "points.json"
    for text, said in (
        ("{", "cannot be read as JSON"),
        ('{"a": 1}', "holds no list"),
        ("[1]", "holds no list"),
    ):
        damaged.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_points([str(damaged)])
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        read_points([str(tmp_path / "bytes.csv")])


def test_methods_keep_their_order_and_points_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("method,params,tokens,loss,budget\nb,4,1,3,10\na,1,1,3,5\nb,2,1,3,10\nb,9,1,3,5\n")
    groups = by_method(read_points([str(path)])[0])
    assert list(groups) == ["b", "a"]
    assert groups["b"].params.tolist() == [9.0, 2.0, 4.0]
