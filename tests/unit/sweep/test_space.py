"""Keys with values and ranges, as they are typed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from doc_pages import PAGES

from lowrise.errors import UsageError
from lowrise.sweep.space import grid_of, name_of, parse_space, random_draws


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=0.1,0.2,0.1", (0.1, 0.2)),
        ("a=muon,adamw", ("muon", "adamw")),
        ("a=true,false", (True, False)),
        ("a=[0.9, 0.95],[0.8, 0.9]", ([0.9, 0.95], [0.8, 0.9])),
        ("a=4,0.25", (4, 0.25)),
        ("data.source=../text,../more", ("../text", "../more")),
        ("a=1..4", (1, 2, 3, 4)),  # five points of four integers
        ("a=8..64:2", (8, 64)),
        ("a=1.0..3.0:3", (1.0, 2.0, 3.0)),
        ("a=1e-3..1e-1:log:3", (0.001, 0.01, 0.1)),
        ("a=16..256:log:3", (16, 64, 256)),
        ("a=-1.5..1.5:3", (-1.5, 0.0, 1.5)),
    ],
)
def test_values_of_a_grid(text: str, values: tuple[Any, ...]) -> None:
    (dimension,) = parse_space([text])
    assert dimension.grid() == values
    assert [type(value) for value in dimension.grid()] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "nothing to vary"),
        (["optimizer.lr"], "no key and values"),
        (["=1,2"], "no key and values"),
        (["a="], "no key and values"),
        (["a=1,,2"], "an empty value"),
        (["a=1..x"], "which is no range"),
        (["a=2..1"], "from a smaller number to a larger"),
        (["a=0..1:log"], "begins above 0"),
        (["a=1..2:lin"], "stand :log and a number of points, not lin"),
        (["a=1..2:1"], "at least 2 points"),
        (["a=1..2:100000000"], "at most 10,000"),
        (["a=1..2:" + "9" * 5000], "at most 10,000"),
        (["a=1,2", "a=3"], "given twice"),
    ],
)
def test_what_is_no_space_is_a_sentence(texts: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_space(texts)


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    assert grid_of(parse_space(["a=1,2", "b=x,y"])) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_random_draws_are_a_function_of_seed_and_number() -> None:
    space = parse_space(["a=1e-4..1e-2:log", "b=4..64", "c=x,y"])
    draws = random_draws(space, 200, 5)
    assert random_draws(space, 50, 5) == draws[:50], "more of them later are the same with others behind"
    assert random_draws(space, 3, 6) != draws[:3]
    assert all(1e-4 <= draw["a"] <= 1e-2 and 4 <= draw["b"] <= 64 for draw in draws)
    # Uniform in the logarithm: half below the geometric mean (standard error 0.035), some at either end.
    assert sum(draw["a"] < 1e-3 for draw in draws) / 200 == pytest.approx(0.5, abs=0.14)
    assert {draw["b"] for draw in draws} >= {4, 64}
    assert {draw["c"] for draw in draws} == {"x", "y"}


def test_a_finite_space_is_exhausted_and_not_repeated() -> None:
    assert len(random_draws(parse_space(["a=1,2", "b=1..3"]), 100, 0)) == 6


def test_names_are_words_a_file_system_takes() -> None:
    assert (
        name_of({"optimizer.lr": 0.02, "layer.rank": 16, "data.source": "../a b"})
        == "lr0.02-rank16-source.._a_b"
    )
    assert len(name_of({"k": "x" * 500})) <= 60


def test_the_page_s_examples_are_read_as_it_says() -> None:
    page = PAGES["docs/commands/sweep.md"].read_text(encoding="utf-8").split("## Keys and values")[1]
    examples = re.findall(r"^\| `([a-z_.]+=[^`]+)`", page, flags=re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        (dimension,) = parse_space([example])
        assert dimension.is_range == (".." in example)
