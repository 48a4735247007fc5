"""Tables name models by the shortest end of their place that tells them apart."""

from __future__ import annotations

import io

import pytest

from lowrise.console import Console
from lowrise.evaluation.harness import show_tasks
from lowrise.evaluation.measure import short_names, show


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["runs/a", "runs/a/export/hf-dense", "b/model.gguf"], ["a", "hf-dense", "model.gguf"]),
        (["x/one/hf", "x/two/hf", "/x/one/run"], ["one/hf", "two/hf", "run"]),
        (["a", "b/a"], ["a", "b/a"]),
        (["a/b", "a/b"], ["a/b", "a/b"]),
        ([".", "./a/"], [".", "a"]),
    ],
)
def test_short_names(places: list[str], names: list[str]) -> None:
    assert short_names(places) == names


def test_tables_of_long_places_are_not_broken_at_80_columns() -> None:
    forms = ("hf-dense", "hf-factored", "safetensors")
    places = [f"/somewhere/runs/spectron/export/{form}" for form in forms]
    numbers = {"step": 20, "val_loss": 7.1, "val_perplexity": 1212.0, "val_bits_per_byte": 2.9}
    sizes = {"val_tokens": 71_610, "val_bytes": 231_231, "seq_len": 128}
    tasks = {"tasks": {"my_task": {"acc": 0.5, "acc_stderr": 0.1}}}
    results = [{"run": place, **numbers, **sizes, **tasks} for place in places]
    console = Console(file=io.StringIO(), width=80)
    show(results, console)
    show_tasks(results, console)
    for form in forms:
        assert console.file.getvalue().count(f" {form} ") == 2


@pytest.mark.parametrize("models", [1, 2, 5])
def test_every_value_of_a_task_stands_whole_on_one_line(models: int) -> None:
    """Columns for the models where they fit, else a row for each."""
    names = [f"model-of-width-{n}" for n in range(models)]
    values = {"word_perplexity": 5275171.506, "acc_norm": 0.5, "acc_norm_stderr": 0.1141}
    console = Console(file=io.StringIO(), width=80)
    show_tasks([{"run": f"/runs/{name}", "tasks": {"local_choice": values}} for name in names], console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    if models < 3:
        assert lines[0] == ["task", "metric", *names]
        assert lines[2] == ["local_choice", "acc_norm", *["0.5000", "±", "0.1141"] * models]
        assert len(lines) == 3
    else:
        assert lines[0] == ["task", "metric", "model", "value"]
        assert lines[1:6] == [["local_choice", "word_perplexity", n, "5.27517e+06"] for n in names]
        assert lines[6:] == [["local_choice", "acc_norm", n, "0.5000", "±", "0.1141"] for n in names]
