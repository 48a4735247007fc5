"""`lowrise scaling`: a real sweep of seconds, its files, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import write_text
from synthetic_scaling import study

from lowrise.cli import main
from lowrise.scaling.points import to_csv

RECIPE = """
method = "{method}"
[model]
preset = "nano"
[data]
source = "{text}"
vocab_size = 300
[train]
seq_len = 16
global_batch_size = 4
[eval]
every = 0
[checkpoint]
every = 0
[log]
telemetry_every = 0
tensorboard = false
[sample]
tokens = 0
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "points.csv"
    path.write_text(to_csv(study(rng, method="adamw") + study(rng, method="spectron", times=0.71)))
    return path


def test_a_real_sweep_from_recipes_to_laws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(tmp_path / "text.jsonl")
    recipe = tmp_path / "spectron.toml"
    recipe.write_text(RECIPE.format(method="spectron", text=text))
    out = tmp_path / "sweep"
    words = [
        "scaling",
        "run",
        str(recipe),
        "--budgets",
        "1.5e8,3e8",
        "--widths",
        "16",
        "24",
        "32",
        "--out",
        str(out),
    ]
    assert main([*words, "--plan"]) == 0
    assert "6 runs" in capsys.readouterr().out
    assert not out.exists()
    assert main([*words, "--workers", "2"]) == 0
    said = capsys.readouterr().out
    points = json.loads((out / "sweep.json").read_text())["points"]
    assert len(points) == 6
    for point in points:
        summary = json.loads((out / "runs" / point["name"] / "summary.json").read_text())
        assert summary["train_flops"] == point["flops"]
        assert summary["tokens"] == point["tokens"]
        assert summary["params_non_embedding"] == point["params"]
        assert summary["val_loss"] == point["loss"]
        assert abs(point["flops"] - point["budget"]) <= point["flops"] / point["steps"] / 2 * (1 + 1e-9)
    assert "N_opt" in said
    assert (out / "report.html").stat().st_size > 10_000
    before = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("summary.json")}
    assert main([*words, "--workers", "2"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("summary.json")} == before
    capsys.readouterr()
    folders = [str(p.parent) for p in (out / "runs").rglob("summary.json")]
    assert main(["scaling", "fit", *folders, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"].keys() == {"spectron"}


def test_fit_prints_what_the_points_say(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "fit", str(table), "--draws", "200"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "spectron needs 0.7" in said
    assert "of adamw's FLOPs for the same loss." in said
    assert "Intervals hold 90% of 200 draws." in said


def test_fit_json_is_alone_on_standard_output(table: Path, tmp_path: Path, capsys) -> None:
    assert (
        main(["scaling", "fit", str(table), "--json", "--draws", "200", "--out", str(tmp_path / "out")]) == 0
    )
    said = capsys.readouterr()
    value = json.loads(said.out)
    assert value == json.loads((tmp_path / "out" / "fit.json").read_text())
    assert "Written" in said.err
    assert value["level"] == 0.9


def test_plot_writes_the_report(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["scaling", "plot", str(table), "--out", str(out), "--level", "0.8", "--draws", "200"]) == 0
    assert {p.name for p in out.iterdir()} == {"points.csv", "fit.json", "report.html"}
    assert "80%" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which of run, fit, plot"),
        (["fitt"], "there is no part 'fitt'; the nearest is 'fit'"),
        (["fit", "nothing.csv"], "There is no table at nothing.csv"),
        (["fit", "TABLE", "--level", "2"], "--level 2"),
        (["fit", "TABLE", "--reference", "adam"], "the nearest is 'adamw'"),
        (["fit", "TABLE", "--drawz", "3"], "there is no flag --drawz; the nearest is --draws"),
        (["plot", "TABLE", "--out", "TABLE"], "is a file; name a folder"),
        (["run", "nothing.toml", "--budgets", "1e9,2e9", "--out", "o"], "There is no recipe at nothing.toml"),
        (["run", "--budgets", "1e9,2e9", "--out", "o"], "There is nothing to sweep"),
        (["run", "nothing.toml", "--budget", "1e9,2e9", "--out", "o"], "the nearest is --budgets"),
    ],
)
def test_wrong_words_are_told(table: Path, words: list[str], said: str, capsys) -> None:
    assert main(["scaling", *(str(table) if word == "TABLE" else word for word in words)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert not shown.out


def test_help_of_the_command_and_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "--help"]) == 0
    assert "lowrise scaling fit" in capsys.readouterr().out
    for part in ("run", "fit", "plot"):
        with pytest.raises(SystemExit) as end:
            main(["scaling", part, "--help"])
        assert end.value.code == 0
        assert f"lowrise scaling {part}" in capsys.readouterr().out
