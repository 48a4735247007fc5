"""`lowrise plan --fit`, `--rate` and `--picture`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lowrise.cli import main
from lowrise.config import load
from lowrise.methods import METHODS


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def rows(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict]:
    assert main(["plan", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["plans"]


def test_every_method_has_the_largest_model_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--fit", "200MB", "--model", "nano"]
    assert main(["plan", *words]) == 0
    text = capsys.readouterr().out
    tables = [line for line in text.splitlines() if line.split(" ")[0] in {"method", *METHODS}]
    assert len(tables) == 3 * (1 + len(METHODS))
    assert all(len(line) <= 80 for line in tables)
    assert "…" not in "".join(tables)
    assert "Family: width d, d/64 layers" in text
    found = rows(capsys, *words)
    assert {row["method"] for row in found} == set(METHODS)
    for row in found:
        assert row["bytes_per_device"]["peak"] <= 200 * 10**6 < row["fit"]["next_peak"], row["method"]
        assert row["fits"] is True


def test_the_layout_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--fit", "2GB", "--model", "60m", "--method", "adamw"]
    (plain,), (small,) = rows(capsys, *words), rows(capsys, *words, "--micro_batch_size", 1)
    assert small["fit"]["width"] > plain["fit"]["width"]
    assert small["layout"]["micro_batch_size"] == 1
    (held,) = rows(capsys, *words[:-1], "lowrank", "--rank", 64)
    assert held["fit"]["rank"] == 64


def test_without_a_model_it_is_the_recipe_of_1b(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, "--fit", "5GB", "--method", "lowrank", "--micro_batch_size", 1)
    assert row["steps"] == 100_000
    assert row["fit"]["rank"] == row["fit"]["width"] // 4  # 512 of 2048


def test_a_recipe_has_its_largest_size_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(load(None, {"method": "muon", "model.preset": "nano"}).to_toml(), encoding="utf-8")
    (row,) = rows(capsys, path, "--fit", "300MB")
    assert row["method"] == "muon"
    assert row["fit"]["width"] > 64
    assert row["bytes_per_device"]["peak"] <= 300 * 10**6 < row["fit"]["next_peak"]


def test_measured_rates_give_each_method_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"rows": [{"method": "muon", "flops_per_update": 1e9, "step_ms": 100.0}]}))
    found = {row["method"]: row for row in rows(capsys, "--model", "nano", "--rate", file)}
    assert found["muon"]["flops_per_second"] == pytest.approx(1e10)
    assert found["muon"]["seconds"] == pytest.approx(found["muon"]["train_flops"] / 1e10)
    assert found["adamw"]["seconds"] is None
    assert main(["plan", "--model", "nano", "--rate", str(file)]) == 0
    assert "for adamw, lowrank" in capsys.readouterr().out


def test_a_picture_has_a_bar_for_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bytes.svg"
    assert main(["plan", "--model", "nano", "--device_memory", "1GB", "--picture", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    ElementTree.fromstring(text.encode())
    assert all(f"{name}, state: " in text for name in METHODS)
    assert "its memory: 954 MiB" in text
    assert "MiB of a device" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fit", "much", "--method", "adamw"], "--fit much: give bytes"),
        (["--fit", "1GB", "--device_memory", "1GB"], "leave --device_memory out"),
        (["--fit", "1KB", "--model", "nano", "--method", "muon"], "no model of the family"),
        (["--model", "nano", "--rate", "x.json", "--flops_per_second", "1e9"], "one of them"),
        (["--model", "nano", "--rate", "x.json"], "x.json is not there"),
        (["--model", "nano", "--picture", "/"], "name the SVG file"),
        (["--model", "nano", "--picture", "no/such/x.svg"], "there is no folder no/such"),
    ],
)
def test_wrong_requests(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_misspelled_method_is_told_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "nano", "--method", "galor"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "lowrise plan --method: there is no method 'galor'; the nearest is 'galore'" in said
