"""The whole sweep with a trainer that takes milliseconds."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fake_training import COMMAND, TRAINER, load_recipe, plan_run, starts, write_recipe

from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.sweep.options import SweepConfig
from lowrise.sweep.sweep import sweep

LRS = "optimizer.lr=0.005,0.01,0.02"
RANKS = "layer.rank=8,16,32"


def request(tmp_path: Path, recipe: str, *vary: str, **options: Any) -> SweepConfig:
    defaults = {"out": str(tmp_path / "out"), "workers": 3, "budget": "tokens=500"}
    return SweepConfig(recipe=recipe, vary=vary, **{**defaults, **options})


def run(config: SweepConfig) -> tuple[int, dict[str, Any], str]:
    text = io.StringIO()
    console = Console(file=text, width=200)
    code = sweep(config, load_recipe=load_recipe, plan_run=plan_run, console=console, command=COMMAND)
    return code, json.loads((Path(config.out) / "sweep.json").read_text()), text.getvalue()


def test_a_grid_finds_the_best_and_writes_its_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    code, result, text = run(request(tmp_path, recipe, LRS, RANKS))
    assert code == 0
    assert len(result["trials"]) == 9
    best = result["trials"][result["best"] - 1]
    assert best["settings"] == {"optimizer.lr": 0.01, "layer.rank": 16}
    assert best["value"] == pytest.approx(3.0)  # the trainer's own arithmetic
    assert result["edges"] == []
    written = tomllib.loads((tmp_path / "out" / "best.toml").read_text())
    assert (written["optimizer.lr"], written["layer.rank"]) == (0.01, 16)
    assert "Best: trial 5" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Heat maps" in page
    assert "Parallel coordinates" in page
    assert "| 5 | 0.01 | 16 | 3.0000 | completed |" in (tmp_path / "out" / "sweep.md").read_text()


def test_a_second_start_repeats_nothing_and_a_larger_space_runs_what_is_new(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    run(request(tmp_path, recipe, LRS))
    before = starts(tmp_path / "out")
    run(request(tmp_path, recipe, LRS))
    assert starts(tmp_path / "out") == before
    _, result, _ = run(request(tmp_path, recipe, LRS + ",0.04"))
    assert len(starts(tmp_path / "out")) == len(before) + 1
    assert len(result["trials"]) == 4


def test_impossible_settings_are_listed_and_the_others_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    code, result, text = run(request(tmp_path, recipe, "layer.rank=8,16,99"))
    assert code == 0
    assert [trial["status"] for trial in result["trials"]] == ["completed", "completed", "refused"]
    assert "trial 3 (layer.rank 99): refused: layer.rank = 99 cannot be" in text
    assert result["edges"] == ["layer.rank (upper end)"], "nothing beyond 16 has run"


def test_divergence_is_a_result_and_a_crash_is_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "crash"
    flag.touch()
    recipe = write_recipe(
        tmp_path, "one", best_lr=0.02, diverges_above=0.015, crash_seeds=[1], crash_while=str(flag)
    )
    code, result, text = run(request(tmp_path, recipe, LRS, seeds=2))
    assert code == 1
    assert [trial["status"] for trial in result["trials"]] == ["failed", "failed", "failed"]
    assert result["best"] is None
    assert not (tmp_path / "out" / "best.toml").exists()
    assert "a crash, as asked" in text or "status 1" in text
    flag.unlink()
    code, result, _ = run(request(tmp_path, recipe, LRS, seeds=2))
    assert code == 0
    assert [trial["status"] for trial in result["trials"]] == ["completed", "completed", "diverged"]
    assert result["trials"][1]["values"] == pytest.approx(
        [3.4805, 3.4815], abs=1e-3
    )  # log(2)^2, 0.001 a seed
    assert result["edges"] == [], "what diverged is evidence"


def test_more_random_trials_add_to_those_that_are_there(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    space = ("optimizer.lr=1e-3..1e-1:log", "layer.rank=4..64")
    _, first, _ = run(request(tmp_path, recipe, *space, search="random", trials=4))
    before = starts(tmp_path / "out")
    _, second, _ = run(request(tmp_path, recipe, *space, search="random", trials=6))
    assert second["trials"][:4] == first["trials"]
    after = starts(tmp_path / "out")
    assert (len(before), len(after)) == (4, 6)
    assert all(after[name] == before[name] for name in before)
    assert "The search" in (tmp_path / "out" / "report.html").read_text()


def test_optuna_follows_its_results_records_them_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    recipe = write_recipe(tmp_path, "one", diverges_above=0.08)
    space = ("optimizer.lr=1e-3..1e-1:log", "layer.rank=4,8,16,32,64,99", "other.name=a,b")
    options = {"search": "optuna", "workers": 2}
    _, first, _ = run(request(tmp_path, recipe, *space, trials=12, **options))
    assert len(first["trials"]) == 12
    recorded = json.loads((tmp_path / "out" / "trials.json").read_text())["trials"]
    assert recorded == [trial["settings"] for trial in first["trials"]]
    before = starts(tmp_path / "out")
    _, second, _ = run(request(tmp_path, recipe, *space, trials=30, **options))
    assert second["trials"][:12] == first["trials"]
    after = starts(tmp_path / "out")
    assert all(after[name] == before[name] for name in before), "nothing is run again"
    values = [trial["value"] for trial in second["trials"] if trial["value"] is not None]
    third = len(values) // 3
    assert sum(values[-third:]) / third < sum(values[:third]) / third, "later draws are better"
    _, other, _ = run(request(tmp_path, recipe, *space[:1], trials=3, **options))
    assert len(other["trials"]) == 3
    assert (tmp_path / "out" / "trials-1.json").exists(), "another space puts the earlier record aside"


def test_without_optuna_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    recipe = write_recipe(tmp_path, "one")
    with pytest.raises(UsageError, match=r"pip install 'lowrise\[sweep\]'"):
        run(request(tmp_path, recipe, LRS, search="optuna"))


def test_two_trials_that_are_the_same_run_are_run_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one")
    _, result, _ = run(request(tmp_path, recipe, "seed=0,1", "layer.rank=16"))
    assert len(starts(tmp_path / "out")) == 2
    assert [trial["value"] for trial in result["trials"]] == pytest.approx([3.0, 3.001])


@pytest.mark.parametrize(
    ("vary", "options", "told"),
    [
        (["nonsense.key=1,2"], {}, "unknown key 'nonsense.key'"),
        (["layer.rank=70,80"], {}, "layer.rank = 70 cannot be"),
        ([LRS], {"set": ("optimizer.lr=0.1",)}, "both varied and set"),
        (["train.steps=1,2"], {}, "both say how long a run is"),
        (["seed=1,2"], {"seeds": 2}, "both give seeds"),
        ([LRS], {"trials": 0}, "--trials 0 is too small"),
        ([LRS], {"seeds": 0}, "--seeds 0 is too small"),
        ([LRS], {"workers": 0}, "--workers 0 runs nothing"),
        ([LRS], {"workers": 10**9}, "--workers 1000000000 are more than"),
        (
            ["layer.rank=1..100000000000000000000"],
            {},
            "from 1 to .*layer.rank = 100000000000000000000 cannot",
        ),
        (["layer.rank=8..99"], {}, "layer.rank: integers from 8 to 99: .*layer.rank = 99 cannot be"),
        (["layer.rank=8..99"], {"search": "random"}, "layer.rank = 99 cannot be"),
        (["layer.rank=8..32:10000", "optimizer.lr=1e-3..1e-2:10000"], {}, "at most 10,000 are planned"),
        ([LRS], {"search": "random", "trials": 10**12}, "1,000,000,000,000 runs, and at most 10,000"),
        ([LRS], {"seeds": 10**9}, "3,000,000,000 runs, and at most 10,000"),
        ([LRS], {"search_seed": -1}, "--search-seed -1 cannot be"),
        ([LRS], {"budget": "seconds=10"}, "is for lowrise compare"),
        ([LRS], {"budget": "bytes=10M"}, "is a size"),
        ([LRS], {"budget": "much"}, "no known unit"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    vary: list[str], options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, "one")
    with pytest.raises(UsageError, match=told):
        run(request(tmp_path, recipe, *vary, **options))
    assert not (tmp_path / "out" / "runs").exists()


def test_a_range_that_a_model_cannot_have_is_refused_at_once(tmp_path: Path) -> None:
    """What the planner alone refuses, a rank above the matrices of a model: not every field has a range."""

    def refusing(config: Any) -> Any:
        if config.to_dict()["layer"]["rank"] > 24:
            raise UsageError("rank 32 is impossible for a 24 x 24 weight.")
        return plan_run(config)

    config = request(tmp_path, write_recipe(tmp_path, "one"), "layer.rank=8..32")
    with pytest.raises(UsageError, match=r"integers from 8 to 32: rank 32 is impossible .* at both ends"):
        sweep(config, load_recipe=load_recipe, plan_run=refusing, console=Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_a_stopped_sweep_goes_on_where_it_was(search: str, tmp_path: Path) -> None:
    if search == "optuna":
        pytest.importorskip("optuna")
    recipe = write_recipe(tmp_path, "long", seconds=1.5)
    options = f"search={search!r}, budget='tokens=15000', trials=3, workers=3"
    script = tmp_path / "start.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(TRAINER.parent)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_sweep import *\n"
        f"sys.exit(run(request(Path({str(tmp_path)!r}), {recipe!r}, LRS, {options}))[0])\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    out = tmp_path / "out"
    for seconds_left in range(600, 0, -1):
        if sum(1 for path in out.glob("runs/*/metrics.jsonl") if path.stat().st_size > 200) >= 1:
            break
        assert seconds_left > 1, "the workers did not start"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    result = json.loads((out / "sweep.json").read_text())
    assert "waiting" in {trial["status"] for trial in result["trials"]}
    config = request(tmp_path, recipe, LRS, search=search, budget="tokens=15000", trials=3)
    code, result, _ = run(config)
    assert code == 0
    assert {trial["status"] for trial in result["trials"]} == {"completed"}
    assert any(len(steps) == 2 and int(steps[1]) > 1 for steps in starts(out).values()), (
        "continued, not begun again"
    )


@pytest.mark.parametrize("content", [b"[", b"{}", b'{"search": 3, "trials": [1]}'])
def test_a_damaged_record_is_put_aside(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    recipe = write_recipe(tmp_path, "one")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trials.json").write_bytes(content)
    code, result, _ = run(request(tmp_path, recipe, LRS, search="optuna", trials=2))
    assert code == 0
    assert len(result["trials"]) == 2
    assert (tmp_path / "out" / "trials-1.json").read_bytes() == content
