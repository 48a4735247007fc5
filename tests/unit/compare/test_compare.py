"""The whole comparison with a trainer that takes milliseconds: selection, failure, resume, kills and
signals.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_training import COMMAND, TRAINER, load_recipe, plan_run, starts, write_recipe

from lowrise.compare.compare import compare
from lowrise.compare.options import CompareConfig
from lowrise.compare.workers import hold_directory
from lowrise.console import Console
from lowrise.errors import LowriseError


def run(config: CompareConfig) -> tuple[int, dict[str, Any], str]:
    text = io.StringIO()
    console = Console(file=text, width=200)
    code = compare(config, load_recipe=load_recipe, plan_run=plan_run, console=console, command=COMMAND)
    return code, json.loads((Path(config.out) / "compare.json").read_text()), text.getvalue()


def request(tmp_path: Path, *recipes: str, **options: Any) -> CompareConfig:
    defaults = {"budget": ("tokens=500",), "out": str(tmp_path / "out"), "seeds": 2, "workers": 3}
    return CompareConfig(recipes=recipes, **{**defaults, **options})


def planned(config: CompareConfig) -> str:
    """What `--plan` prints; a trainer that is started would fail."""
    said = io.StringIO()
    parts: dict[str, Any] = {"load_recipe": load_recipe, "plan_run": plan_run, "command": ["false"]}
    assert compare(config, console=Console(file=said, width=200), **parts) == 0
    return said.getvalue()


def test_the_best_rate_is_found_its_seeds_are_run_and_the_files_are_written(tmp_path: Path) -> None:
    good = write_recipe(tmp_path, "good", base=3.0)
    bad = write_recipe(tmp_path, "bad", base=3.5, best_lr=0.02)
    code, result, text = run(request(tmp_path, bad, good, seeds=3))
    assert code == 0
    first, second = result["rows"]
    assert (first["label"], first["best"]["lr"], first["best"]["edges"]) == ("bad", 0.02, ["highest lr"])
    assert (second["label"], second["best"]["lr"], second["best"]["edges"]) == ("good", 0.01, [])
    assert second["val_loss"]["values"] == pytest.approx([3.0, 3.001, 3.002])  # the trainer's own arithmetic
    assert second["difference"]["verdict"] == "undecided"
    assert "bad lies at the edge of its grid (highest lr tried)" in second["difference"]["because"]
    assert second["difference"]["high"] < 0
    assert len(result["runs"]) == 2 * (3 + 2)
    assert {r["steps"] for r in result["runs"]} == {5}
    for name in ("plan.json", "compare.json", "compare.md", "report.html"):
        assert (tmp_path / "out" / name).is_file()
        assert (tmp_path / "out" / "tables" / "tokens-500" / name).is_file()
    assert "95% Welch" in text
    assert "highest lr" in text


def test_a_second_start_repeats_nothing_and_a_second_budget_shares_the_equal_runs(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    run(request(tmp_path, recipe))
    before = starts(tmp_path / "out")
    code, _, _ = run(request(tmp_path, recipe))
    assert code == 0
    assert starts(tmp_path / "out") == before
    code, result, _ = run(
        request(tmp_path, recipe, budget=("flops=5e6",))
    )  # 5e6 / (100 tokens x 1e4) is 5 steps too
    assert code == 0
    assert starts(tmp_path / "out") == before
    assert result["budget"] == "5e06 FLOPs"
    run(request(tmp_path, recipe, budget=("tokens=600",)))
    assert len(starts(tmp_path / "out")) == 2 * len(before)


def test_a_crash_does_not_lose_the_rest_and_is_tried_again_at_the_next_start(tmp_path: Path) -> None:
    flag = tmp_path / "crash"
    flag.touch()
    sick = write_recipe(tmp_path, "sick", crash_seeds=[1], crash_while=str(flag))
    well = write_recipe(tmp_path, "well")
    code, result, _ = run(request(tmp_path, sick, well))
    assert code == 1
    row, other = result["rows"]
    assert (row["completed"], row["failed"], row["lost_seeds"]) == (3, 1, 1)
    assert other["difference"]["because"] == "1 seed(s) of sick diverged or failed"
    failed = [r for r in result["runs"] if r["status"] == "failed"]
    assert len(failed) == 1
    assert "status 1" in failed[0]["error"]
    assert "a crash, as asked" in failed[0]["error"]
    before = starts(tmp_path / "out")
    flag.unlink()
    code, result, _ = run(request(tmp_path, sick, well))
    assert code == 0
    after = starts(tmp_path / "out")
    assert [name for name in after if after[name] != before[name]] == [failed[0]["name"]]


def test_divergence_is_a_result_and_not_repeated(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "hot", best_lr=0.05, diverges_above=0.015)
    code, result, _ = run(request(tmp_path, recipe))
    assert code == 0
    (row,) = result["rows"]
    assert (row["best"]["lr"], row["best"]["edges"], row["diverged"]) == (0.01, [], 1)
    before = starts(tmp_path / "out")
    run(request(tmp_path, recipe))
    assert starts(tmp_path / "out") == before


def test_a_recipe_that_keeps_an_average_is_tuned_and_judged_by_it(tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, "plain", base=3.0)
    averaged = write_recipe(tmp_path, "averaged", base=3.0, average_best_lr=0.02)
    _, result, _ = run(request(tmp_path, plain, averaged, lr_factors="0.5,1,2,4"))
    first, second = result["rows"]
    assert (first["best"]["lr"], first["val_loss"]["values"]) == (0.01, pytest.approx([3.0, 3.001]))
    assert (second["best"]["lr"], second["val_loss"]["values"]) == (0.02, pytest.approx([2.8, 2.801]))
    assert second["val_perplexity"]["values"] == pytest.approx([math.exp(2.8), math.exp(2.801)])
    chosen = next(r for r in result["runs"] if r["recipe"] == "averaged" and r["chosen"])
    assert chosen["summary"]["raw_val_loss"] == pytest.approx(3.0 + math.log(2) ** 2 + 0.001 * chosen["seed"])


def test_a_grid_grows_where_its_best_lies_at_an_end(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "far", best_lr=0.04)
    _, result, _ = run(request(tmp_path, recipe, max_extensions=3))
    (row,) = result["rows"]
    assert row["best"]["lr"] == 0.04
    assert (row["best"]["edges"], row["best"]["extensions"]) == ([], 2)
    assert sorted({r["lr"] for r in result["runs"]}) == [0.005, 0.01, 0.02, 0.04, 0.08]


def test_the_warm_up_of_both_rates_is_part_of_the_grid(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    Path(recipe).write_text(Path(recipe).read_text() + "[schedule]\nwarmup = 0.1\n[other]\nlr = 0.001\n")
    factors = {"lr_factors": "0.5,1,2", "warmup_factors": "1,2", "other_warmup_factors": "0.5,1"}
    code, result, _ = run(request(tmp_path, recipe, **factors))
    assert code == 0
    grid = [r for r in result["runs"] if r["grid"]]
    assert len(grid) == 3 * 2 * 2
    assert {(r["warmup"], r["other_warmup"]) for r in grid} == {
        (0.1, 0.1),
        (0.2, 0.1),
        (0.1, 0.05),
        (0.2, 0.05),
    }
    best = result["rows"][0]["best"]
    assert (best["lr"], best["lr_tuned"], best["warmup_tuned"], best["other_lr_tuned"]) == (
        0.01,
        True,
        True,
        False,
    )
    assert any("warm-up" in edge for edge in best["edges"]), "two values have no inside"
    settings = next(r["settings"] for r in grid if r["warmup"] == 0.2 and r["other_warmup"] == 0.05)
    assert (settings["schedule.warmup"], settings["schedule.other_warmup"]) == (0.2, 0.05)


def test_a_budget_of_seconds_is_steps_of_the_time_that_a_probe_measures(tmp_path: Path) -> None:
    fast = write_recipe(tmp_path, "fast", step_ms=10.0)
    slow = write_recipe(tmp_path, "slow", step_ms=25.0)
    config = request(tmp_path, fast, slow, budget=("seconds=0.5",))
    code, result, text = run(config)
    assert code == 0
    assert {r["recipe"]: r["steps"] for r in result["runs"]} == {"fast": 50, "slow": 20}
    assert [round(row["costs"]["train_seconds"], 6) for row in result["rows"]] == [0.5, 0.5]
    assert "started   probe-fast" in text
    before = starts(tmp_path / "out")
    assert sum(name.startswith("probe-") for name in before) == 4, "two probes each for three workers"
    # A machine that is slower at the second start plans no other steps.
    write_recipe(tmp_path, "fast", step_ms=10.0)
    run(config)
    assert starts(tmp_path / "out") == before


def test_a_plan_alone_is_told_and_nothing_is_run_or_written(tmp_path: Path) -> None:
    first, second = write_recipe(tmp_path, "first"), write_recipe(tmp_path, "second")
    before = sorted(tmp_path.rglob("*"))
    text = planned(request(tmp_path, first, second, max_extensions=1, plan=True))
    # 3 rates and 1 further seed for each of two; 5 steps of 100 tokens at 1e4 FLOPs.
    assert "8 runs (3 grid point(s) and 2 seed(s) for each recipe), 4.00 k tokens and 4.00e7 FLOPs" in text
    assert "more where a grid grows" in text
    assert "second: lr 0.005, 0.01, 0.02" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_alone_of_a_budget_of_seconds_knows_no_length(tmp_path: Path) -> None:
    text = planned(request(tmp_path, write_recipe(tmp_path, "one"), budget=("seconds=5",), plan=True))
    assert "1.00e6 a step" in text
    assert "tokens and" not in text


def test_a_changed_plan_keeps_the_earlier_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    run(request(tmp_path, recipe))
    _, result, _ = run(request(tmp_path, recipe, lr_factors="1,2"))
    table = tmp_path / "out" / "tables" / "tokens-500"
    assert json.loads((table / "plan-1.json").read_text())["lr_factors"] == [0.5, 1.0, 2.0]
    assert json.loads((table / "plan.json").read_text())["lr_factors"] == [1.0, 2.0]
    assert any("plan was changed 1 time" in note for note in result["notes"])


def test_one_killed_worker_is_recorded_and_the_others_finish(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "long", seconds=1.0)
    out = tmp_path / "out"

    def kill_one() -> None:
        pid = wait_for_worker(out, "seed0")
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    code, result, _ = run(request(tmp_path, recipe))
    killer.join()
    assert code == 1
    killed = [r for r in result["runs"] if r["status"] == "failed"]
    assert len(killed) == 1
    assert "SIGKILL" in killed[0]["error"]
    assert result["rows"][0]["completed"] == 3
    code, result, _ = run(request(tmp_path, recipe))
    assert code == 0
    assert all(r["status"] == "completed" for r in result["runs"])


def test_sigint_reaches_the_workers_which_save_and_a_second_start_continues(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "long", seconds=1.5)
    script = tmp_path / "start.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(TRAINER.parent)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_compare import *\n"
        f"sys.exit(run(request(Path({str(tmp_path)!r}), {recipe!r}, budget=('tokens=15000',)))[0])\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    out = tmp_path / "out"
    for seconds_left in range(300, 0, -1):
        if sum(1 for path in out.glob("runs/*/metrics.jsonl") if path.stat().st_size > 200) == 3:
            break
        assert seconds_left > 1, "the workers did not start"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert len(list(out.glob("runs/*/checkpoint.json"))) == 3
    result = json.loads((out / "compare.json").read_text())
    assert {r["status"] for r in result["runs"]} == {"waiting"}
    assert result["rows"][0]["waiting"] == 3
    code, result, _ = run(request(tmp_path, recipe, budget=("tokens=15000",)))
    assert code == 0
    grid = [lines for name, lines in starts(out).items() if "seed0" in name]
    assert all(len(lines) == 2 and int(lines[1]) > 1 for lines in grid)  # continued, not begun again


def test_a_directory_is_held_by_one_comparison(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    config = request(tmp_path, recipe)
    held = hold_directory(Path(config.out), "lowrise compare")
    with held, pytest.raises(LowriseError, match=rf"^lowrise compare \(process {os.getpid()}\)"):
        run(config)
    assert run(config)[0] == 0


def wait_for_worker(out: Path, part: str) -> int:
    """The process id of a training worker whose run directory's name contains ``part``."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if str(TRAINER).encode() in words and any(
                str(out).encode() in w and part.encode() in w for w in words
            ):
                return int(path.parent.name)
        time.sleep(0.02)
    raise AssertionError("no worker was found")


@pytest.mark.parametrize(
    "content",
    [None, b"\xff\xfe{}", b"[" * 100_000, b"[null]"],
    ids=["folder", "not UTF-8", "deep", "list"],
)
@pytest.mark.parametrize("name", ["plan.json", "summary.json", "metrics.jsonl", "compare.json"])
def test_damaged_files_of_an_earlier_start_are_no_traceback(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, "one")
    config = request(tmp_path, recipe, seeds=1, lr_factors="1", workers=1)
    run(config)
    out = Path(config.out)
    for path in [*out.glob(f"tables/*/{name}"), *out.glob(f"runs/*/{name}")]:
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    try:
        code, result, _ = run(config)
        assert code in (0, 1)
        assert len(result["runs"]) == 1
    except (LowriseError, OSError) as error:  # the command makes either a message
        assert name in str(error)  # noqa: PT017  (going on is right too)
