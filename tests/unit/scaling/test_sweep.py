"""Whole sweeps with a trainer of milliseconds: plan, runs, files, kills, continuing."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_scaling
import pytest
from fake_scaling import COMMAND, load_recipe, plan_run, write_recipe

from lowrise.compare.workers import hold_directory
from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.scaling.command import report_sweep
from lowrise.scaling.options import SweepOptions
from lowrise.scaling.plan import build_plan, parse_budgets, parse_powers
from lowrise.scaling.points import by_method, read_points
from lowrise.scaling.sweep import sweep

BUDGETS = "1e9,2e9,4e9"


def request(folder: Path, *recipes: str, **options: Any) -> SweepOptions:
    usual: dict[str, Any] = {"budgets": BUDGETS, "out": str(folder / "out"), "sizes": 4, "workers": 4}
    return SweepOptions(recipes=recipes, **{**usual, "tokens_per_parameter": 10.0, **options})


def run(options: SweepOptions) -> tuple[int, list[dict[str, Any]], str]:
    text = io.StringIO()
    code = sweep(
        options,
        load_recipe=load_recipe,
        plan_run=plan_run,
        console=Console(file=text, width=200),
        command=COMMAND,
    )
    return code, json.loads((Path(options.out) / "sweep.json").read_text())["points"], text.getvalue()


def starts(out: Path) -> dict[str, list[str]]:
    return {p.parent.name: p.read_text().split() for p in out.glob("runs/*/starts.txt")}


def test_every_size_of_every_budget_is_run_and_fitted(tmp_path: Path) -> None:
    recipes = [write_recipe(tmp_path, "one"), write_recipe(tmp_path, "two", times=0.5)]
    options = request(tmp_path, *recipes)
    code, points, _ = run(options)
    assert code == 0
    assert len(points) == 2 * 3 * 4
    assert {p["status"] for p in points} == {"completed"}
    for p in points:
        assert p["params"] == 12 * p["width"] ** 2
        assert abs(p["flops"] / p["budget"] - 1) < 600 * p["params"] / p["budget"]  # one step of 100 tokens
        assert p["flops"] == pytest.approx(6 * p["params"] * p["tokens"])
    report_sweep(Path(options.out), Console(file=io.StringIO()))
    written = {path.name for path in Path(options.out).iterdir()}
    assert written >= {"plan.json", "sweep.json", "points.csv", "fit.json", "report.html"}
    fit = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert fit["methods"].keys() == {"one", "two"}
    (times,) = (m["times"] for m in fit["multipliers"])
    assert 0.3 < times[0] < 1.0  # half the tokens are less than half of the way: N counts too


def test_a_second_start_repeats_nothing_and_tries_a_crash_again(tmp_path: Path) -> None:
    obstacle = tmp_path / "obstacle"
    obstacle.touch()
    recipe = write_recipe(tmp_path, "one", crash_width=64, crash_while=str(obstacle))
    options = request(tmp_path, recipe, widths=(48, 64, 80))
    code, points, _ = run(options)
    assert code == 1
    assert [p["status"] for p in points if p["width"] == 64] == ["failed"] * 3
    assert [p["error"] for p in points if p["width"] == 64] == ["The worker exited with status 1."] * 3
    obstacle.unlink()
    code, points, _ = run(options)
    assert code == 0
    assert {p["status"] for p in points} == {"completed"}
    assert {len(lines) for name, lines in starts(tmp_path / "out").items() if "-d64-" in name} == {2}
    assert {len(lines) for name, lines in starts(tmp_path / "out").items() if "-d64-" not in name} == {1}


def test_divergence_is_a_result_left_out_of_the_points(tmp_path: Path) -> None:
    options = request(tmp_path, write_recipe(tmp_path, "one", diverges_width=64), widths=(48, 64, 80, 96))
    code, points, _ = run(options)
    assert code == 0
    assert sum(p["status"] == "diverged" for p in points) == 3
    found, left_out = read_points([options.out])
    assert len(found) == 9
    assert len(left_out) == 3
    assert all("diverged" in line for line in left_out)


def test_the_best_rate_of_a_grid_is_the_point(tmp_path: Path) -> None:
    options = request(tmp_path, write_recipe(tmp_path, "one", lr=0.02), lr_factors="0.5,1,2", seeds=2)
    _, points, _ = run(options)
    assert len(points) == 3 * 4 * 3 * 2
    found, _ = read_points([options.out])
    assert len(found) == 3 * 4 * 2
    best = {p["loss"] for p in points if p["lr"] == 0.01}
    assert {p.loss for p in found} == best


def test_the_rate_follows_the_width_by_the_stated_power(tmp_path: Path) -> None:
    recipes = (write_recipe(tmp_path, "one", lr=0.04), write_recipe(tmp_path, "two", lr=0.04))
    options = request(
        tmp_path, *recipes, widths=(16, 32, 128), budgets="1e10,2e10", lr_power=("1", "two=0.5")
    )
    plan = build_plan(options, load_recipe, plan_run)
    assert {(r.method, r.width): r.lr for r in plan.runs} == {
        ("one", 16): 0.16, ("one", 32): 0.08, ("one", 128): 0.02,
        ("two", 16): 0.08, ("two", 32): 0.05657, ("two", 128): 0.02828,
    }  # fmt: skip
    assert [r.budget for r in plan.runs] == sorted(r.budget for r in plan.runs)
    assert all(f"-lr{r.lr:g}-" in r.spec.name for r in plan.runs)


def test_sizes_lie_around_the_tokens_per_parameter_that_were_asked_for(tmp_path: Path) -> None:
    options = request(tmp_path, write_recipe(tmp_path, "one"), sizes=5, spread=8.0, tokens_per_parameter=20.0)
    plan = build_plan(
        request(tmp_path, options.recipes[0], budgets="1e15,1e17", sizes=5), load_recipe, plan_run
    )
    for budget in plan.budgets:
        ratios = [r.tokens / r.params for r in plan.runs if r.budget == budget]
        aims = [10.0 * 8 ** (1 - i / 2) for i in range(5)]
        # Neighbours in the family are a sixth to a quarter apart in width, twice that in size, four times in
        # tokens per parameter.
        for ratio, aim in zip(ratios, aims, strict=True):
            assert 0.6 < ratio / aim < 1.7


def test_one_directory_is_held_by_one_sweep(tmp_path: Path) -> None:
    options = request(tmp_path, write_recipe(tmp_path, "one"))
    held = hold_directory(Path(options.out), "lowrise scaling run")
    with held, pytest.raises(LowriseError, match=r"^lowrise scaling run"):
        run(options)


def test_a_changed_plan_keeps_the_earlier_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    run(request(tmp_path, recipe))
    run(request(tmp_path, recipe))
    assert not list((tmp_path / "out").glob("plan-*.json"))
    run(request(tmp_path, recipe, budgets="1e9,2e9"))
    assert len(list((tmp_path / "out").glob("plan-*.json"))) == 1


SCRIPT = """
import sys
sys.path[:0] = [{here!r}, {tests!r}]
from pathlib import Path
from test_sweep import request, run
code, _, _ = run(request(Path({folder!r}), {recipe!r}, widths=(48, 64, 80), budgets="1e9,2e9", workers=3))
sys.exit(code)
"""


def start(tmp_path: Path, recipe: str, count: int = 3) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own, once its workers have been started `count` times in all."""
    here, tests = Path(__file__).parent, Path(fake_scaling.__file__).parent
    script = SCRIPT.format(here=str(here), tests=str(tests), folder=str(tmp_path), recipe=recipe)
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while sum(map(len, starts(tmp_path / "out").values())) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_lets_the_workers_save_and_a_second_start_continues(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    recipe = write_recipe(tmp_path, "one", seconds=20)
    process = start(tmp_path, recipe)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    out = tmp_path / "out"
    assert len(list(out.glob("runs/*/checkpoint.json"))) == 3
    assert {p["status"] for p in json.loads((out / "sweep.json").read_text())["points"]} == {"waiting"}
    process = start(tmp_path, recipe, count=6)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    first = [lines for lines in starts(out).values() if lines[0] == "1" and len(lines) > 1]
    assert len(first) == 3
    assert all(int(lines[1]) > 1 for lines in first)  # continued, not begun again


def test_a_killed_sweep_continues(tmp_path: Path) -> None:
    """SIGKILL: the workers outlive it, and hold the folder until they are done."""
    recipe = write_recipe(tmp_path, "one", seconds=1.0)
    process = start(tmp_path, recipe)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            code, points, _ = run(request(tmp_path, recipe, widths=(48, 64, 80), budgets="1e9,2e9"))
            break
        except LowriseError:
            time.sleep(0.2)
    assert code == 0
    assert {p["status"] for p in points} == {"completed"}
    assert {len(lines) for lines in starts(tmp_path / "out").values()} == {1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budgets": "1e9"}, "--budgets '1e9' is not a list of at least 2"),
        ({"budgets": "1e9,many"}, "--budgets '1e9,many'"),
        ({"budgets": "1e9,-1"}, "--budgets"),
        ({"sizes": 2}, "--sizes 2 is too small"),
        ({"widths": (48, 64)}, "--widths needs at least 3"),
        ({"widths": (48, 64, 70)}, "The width 70 is not in the family"),
        ({"spread": 1.0}, "--spread 1"),
        ({"tokens_per_parameter": 0.0}, "--tokens-per-parameter 0"),
        ({"lr_factors": "0"}, "--lr-factors"),
        ({"lr_power": ("x",)}, "--lr-power 'x' is no number"),
        ({"lr_power": ("three=1",)}, "there is no recipe 'three', only one"),
        ({"seeds": 0}, "--seeds 0"),
        ({"workers": 0}, "--workers 0"),
        ({"set": ("model.num_layers=3",)}, "--set model.num_layers would break the sweep"),
        ({"set": ("train.steps=3",)}, "--set train.steps"),
        ({"budgets": "1e5,1e6", "widths": (48, 64, 80)}, "at least 10 are needed"),
    ],
)
def test_wrong_requests_are_told_before_anything_is_run(tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        run(request(tmp_path, write_recipe(tmp_path, "one"), **options))
    assert not (tmp_path / "out").exists()


def test_a_rank_that_does_not_grow_with_the_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"layer\.rank = 16, one rank for every size"):
        run(request(tmp_path, write_recipe(tmp_path, "one", rank=16)))


def test_budgets_and_powers() -> None:
    assert parse_budgets("4e15,1e15,2e15") == (1e15, 2e15, 4e15)
    assert parse_budgets("1M,2M") == (1e6, 2e6)
    assert parse_powers(("0.5", "b=1"), ("a", "b")) == {"a": 0.5, "b": 1.0}
    assert parse_powers((), ("a",)) == {"a": 0.0}


def test_points_of_a_sweep_are_by_method(tmp_path: Path) -> None:
    options = request(tmp_path, write_recipe(tmp_path, "one"), budgets="1e9,2e9")
    run(options)
    found, _ = read_points([options.out])
    assert len(by_method(found)["one"]) == 8
    total, _ = read_points([options.out], "total")
    assert {p.params for p in total} == {p.params + 1000 * (p.params / 12) ** 0.5 for p in found}
