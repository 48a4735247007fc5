"""`lowrise inspect` on a real run, its exports and wrong folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import config_for, run_training, write_text

from lowrise.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    write_text(folder / "text.jsonl")
    run_training(config_for(folder, "lowrank"), folder / "run")
    return folder / "run"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["inspect", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_is_whole_at_80_columns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("matrix", "0.", "1."))]
    assert len(table) == 15
    assert all(len(line) <= 80 for line in table)
    assert "…" not in "".join(table)
    assert "99% of the energy takes rank" in "".join(lines)


def test_runs_and_exports_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = told(capsys, run, "--energy", 0.9)
    assert (own["kind"], own["method"], own["step"], own["energy"]) == ("run", "lowrank", 8, 0.9)
    for words, kind in (
        (["--to", "hf"], "dense"),
        (["--to", "hf", "--form", "factored"], "factored"),
        (["--to", "safetensors"], "safetensors of a run"),
    ):
        out = run.parent / kind.split()[0]
        assert main(["export", str(run), *words, "--out", str(out)]) == 0
        capsys.readouterr()
        other = told(capsys, out, "--energy", 0.9)
        assert kind in other["kind"]
        assert len(other["matrices"]) == len(own["matrices"]) == 14
        for a, b in zip(own["matrices"], other["matrices"], strict=True):
            for key in ("name", "rows", "columns", "energy_rank"):
                assert a[key] == b[key]
            for key in ("spectral_norm", "stable_rank", "effective_rank"):
                # the dense form is rounded to float32 once more
                assert a[key] == pytest.approx(b[key], rel=1e-4)


def test_an_earlier_step_and_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    earlier = told(capsys, run, "--step", 4, "--out", page)
    assert earlier["step"] == 4
    assert earlier["matrices"] != told(capsys, run)["matrices"]
    text = page.read_text(encoding="utf-8")
    assert text.count('<figure class="chart"') == 7 + 4
    assert "model.layers.1.mlp.down_proj" in text


def test_wrong_folders(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "empty").mkdir()
    for words, sentence in (
        ([tmp_path / "none"], "is not there"),
        ([run / "config.toml"], "is a file"),
        ([tmp_path / "empty"], "is no run"),
        ([tmp_path], "GGUF"),
        ([tmp_path / "bert"], "model_type is 'bert'"),
        ([run / "checkpoints" / "step-00000008"], "--step"),
        ([run, "--step", 5], "it has 4, 8"),
        ([tmp_path / "empty", "--step", 5], "leave --step 5 out"),
        ([run, "--energy", 0], "a fraction above 0, at most 1"),
        ([run, "--out", tmp_path], "name the HTML file"),
        ([run, "--out", tmp_path / "no" / "x.html"], "there is no folder"),
    ):
        assert main(["inspect", *map(str, words)]) == 2, words
        assert sentence in capsys.readouterr().err.replace("\n", " ")
