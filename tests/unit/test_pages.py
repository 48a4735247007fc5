"""`lowrise report` of every kind of folder: the page is the one that the command wrote, and nothing else is
touched; what has only begun gets what there is.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_training import COMMAND, load_recipe, plan_run, starts, write_recipe
from synthetic_scaling import Law

from lowrise.cli import main
from lowrise.compare import again
from lowrise.compare import compare as compare_module
from lowrise.compare.compare import compare
from lowrise.compare.options import CompareConfig
from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.pages import KINDS, kind_of
from lowrise.sweep.options import SweepConfig
from lowrise.sweep.sweep import sweep

ROOT = Path(__file__).parents[2]
PARTS: dict[str, Any] = {"load_recipe": load_recipe, "plan_run": plan_run, "command": COMMAND}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Two tables of two recipes; a seed of the second crashed."""
    (tmp_path / "crash").touch()
    sick = write_recipe(tmp_path, "sick", base=3.2, crash_seeds=[1], crash_while=str(tmp_path / "crash"))
    recipes = (write_recipe(tmp_path, "well", betas=[0.9, 0.95]), sick)
    for tokens in (700, 500):
        config = CompareConfig(
            recipes=recipes, budget=(f"tokens={tokens}",), out=str(tmp_path / "out"), seeds=3, workers=3
        )
        assert compare(config, console=quiet(), **PARTS) == 1
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewritten(folder: Path, *pages: str) -> None:
    """`lowrise report` brings these pages back as they were, and leaves all else."""
    before = contents(folder)
    for page in pages:
        (folder / page).unlink()
    assert main(["report", str(folder)]) == 0
    assert contents(folder) == before


def test_a_comparison(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = ["report.html", "tables/tokens-500/report.html", "tables/tokens-700/report.html"]
    rewritten(comparison, *pages)
    said = capsys.readouterr().out
    assert all(str(comparison / page) in said for page in pages)
    page = (comparison / "report.html").read_text()
    assert "a crash, as asked" in page  # the failed run and why, which its folder alone does not tell
    assert "Budget of a run: 500 tokens" in page


def test_one_table_and_another_file(comparison: Path, tmp_path: Path) -> None:
    rewritten(comparison / "tables" / "tokens-700", "report.html")
    before = contents(comparison)
    assert main(["report", str(comparison), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (comparison / "report.html").read_text()
    assert contents(comparison) == before


def test_a_comparison_that_has_begun(comparison: Path, tmp_path: Path) -> None:
    """Its numbers are those of the runs so far; nothing is started for it."""
    table = comparison / "tables" / "tokens-500"
    shutil.rmtree(comparison / "tables" / "tokens-700")
    for name in ("compare.json", "compare.md", "report.html"):
        (table / name).unlink()
        (comparison / name).unlink()
    (comparison / "plan.json").unlink()
    whole = next(run for run in comparison.glob("runs/well-lr0.01-seed2-*") if "500" in steps_of(run))
    shutil.rmtree(whole)
    before = starts(comparison)
    again.write_again(comparison, None, load_recipe)
    page = (comparison / "report.html").read_text()
    assert "well: 1 still to do" in page
    assert "<td>3.0005" in page  # the mean of the seeds 0 and 1
    assert starts(comparison) == before
    assert not (table / "compare.json").exists()
    Path(tmp_path / "well.toml").write_text("[optimizer]\nlr = 0.01\n[fake]\nbase = 9.0\n")
    with pytest.raises(LowriseError, match="not as they were planned"):
        again.write_again(comparison, None, load_recipe)
    Path(tmp_path / "well.toml").write_text('plugin = ["own.py"]\n')
    with pytest.raises(LowriseError, match=r"runs the code in own\.py"):
        again.write_again(comparison, None, load_recipe)


def steps_of(run: Path) -> str:
    return str(100 * int((run / "config.toml").read_text().split("'train.steps' = ")[1].split()[0]))


def test_numbers_are_kept_as_a_comparison_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    write = compare_module.write_numbers

    def look(directory: Path, found: Any, environment: dict[str, Any]) -> None:
        write(directory, found, environment)
        runs = json.loads((directory / "compare.json").read_text())["runs"]
        seen.append(sum(run["status"] == "completed" for run in runs))

    monkeypatch.setattr(compare_module, "write_numbers", look)
    config = CompareConfig(
        recipes=(write_recipe(tmp_path, "one"),),
        budget=("tokens=500",),
        out=str(tmp_path / "out"),
        seeds=2,
        workers=1,
    )
    compare(config, console=quiet(), **PARTS)
    assert seen == [0, 1, 2, 3, 4]


def test_a_comparison_without_its_runs_keeps_its_curves(
    comparison: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(comparison / "runs")
    before = contents(comparison)
    assert main(["report", str(comparison)]) == 1
    assert "would lose its curves" in " ".join(capsys.readouterr().err.split())
    assert contents(comparison) == before


def test_a_damaged_comparison(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = comparison / "tables" / "tokens-500" / "compare.json"
    document = json.loads(table.read_text())
    del document["rows"][0]["val_loss"]
    table.write_text(json.dumps(document))
    assert main(["report", str(comparison)]) == 1
    assert "compare.json is damaged or of another version" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("search", ["grid", "random"])
def test_a_sweep(search: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "one", diverges_above=0.015)
    config = SweepConfig(
        recipe=recipe,
        vary=("optimizer.lr=0.005..0.02:log", "layer.rank=8,16,128"),
        search=search,
        trials=4,
        seeds=2,
        budget="tokens=500",
        out=str(tmp_path / "out"),
        workers=3,
    )
    assert sweep(config, console=quiet(), **PARTS) == 0
    rewritten(tmp_path / "out", "report.html")


def scaling_points() -> list[dict[str, Any]]:
    """Two methods, the second with losses a tenth higher, at three budgets and four sizes."""
    points = []
    for method, factor in (("one", 1.0), ("two", 1.1)):
        for budget in (1e18, 4e18, 1.6e19):
            for share in (0.3, 0.7, 1.5, 3.5):
                n = share * Law().best_params(budget)
                d = budget / (6 * n)
                point = {"params": n, "tokens": d, "flops": budget, "loss": factor * Law().loss(n, d)}
                points.append({"method": method, "budget": budget, **point})
    return points


def test_a_scaling_sweep_and_a_study(tmp_path: Path) -> None:
    folder, study = tmp_path / "sweep", tmp_path / "study"
    folder.mkdir()
    rows = [{**point, "status": "completed"} for point in scaling_points()]
    rows.append({**rows[0], "status": "waiting", "loss": None, "name": "one-last"})
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "points": rows}))
    rules = ["--draws", "100", "--level", "0.8"]
    assert main(["scaling", "plot", str(folder), "--out", str(folder), *rules]) == 0
    rewritten(folder, "report.html")
    assert "one-last: waiting" in (folder / "report.html").read_text()
    assert main(["scaling", "plot", str(folder), "--out", str(study), *rules]) == 0
    rewritten(study, "report.html")


def test_a_scaling_sweep_without_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**scaling_points()[0], "status": "waiting", "loss": None}]
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "points": rows}))
    assert main(["report", str(tmp_path)]) == 2
    assert "no row has a loss" in capsys.readouterr().err


def test_a_track(tmp_path: Path) -> None:
    folder = tmp_path / "cpu-tiny"
    shutil.copytree(ROOT / "tracks" / "cpu-tiny", folder)
    assert main(["track", "table", str(folder)]) == 0
    rewritten(folder, "leaderboard.html")


@pytest.mark.parametrize("name", ["absent", "file", "empty", "holds"])
def test_a_wrong_folder_is_told_what_is_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "holds" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "holds" / "runs" / "a" / "metrics.jsonl").touch()
    with pytest.raises(UsageError) as caught:
        kind_of(tmp_path / name)
    assert all(kind.name in str(caught.value) for kind in KINDS)
    assert ("such as" in str(caught.value)) == (name == "holds")


def test_several_folders_are_runs(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(comparison.glob("runs/*"))
    assert main(["report", str(run), str(comparison)]) == 2
    assert "is a comparison (lowrise compare): one page of several folders" in " ".join(
        capsys.readouterr().err.split()
    )
