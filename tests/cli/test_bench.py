"""`lowrise bench`: every method in a process of its own, round after round, as a table and as numbers."""

from __future__ import annotations

import json

import pytest

from lowrise.cli import main
from lowrise.compare import bench
from lowrise.errors import LowriseError


def words(text_folder, *more: str) -> list[str]:
    settings = [
        f'data.source=["{text_folder}/text.jsonl"]',
        f"data.cache={text_folder}/cache",
        "data.vocab_size=300",
        "data.valid_fraction=0.1",
        "train.global_batch_size=4",
        "train.seq_len=16",
        "train.threads=1",
    ]
    return ["bench", "--preset", "nano", "--steps", "2", "--rounds", "1", "--set", *settings, *more]


def test_methods_are_measured_and_written_down(text_folder, tmp_path, capsys):
    out = tmp_path / "bench.md"
    assert main(words(text_folder, "--methods", "adamw", "lowrank", "--json", "--out", str(out))) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.with_suffix(".json").read_text()) == result
    first, second = result["rows"]
    assert [first["method"], second["method"]] == ["adamw", "lowrank"]
    assert first["speed"] == first["promise"] == first["kept"] == 1
    assert second["promise"] == pytest.approx(first["flops_per_update"] / second["flops_per_update"])
    assert second["promise"] > 1
    assert second["kept"] == pytest.approx(second["speed"] / second["promise"])
    assert second["params_total"] < first["params_total"]
    assert [len(times) for times in second["seconds"]] == [2]
    assert result["tokens_per_update"] == 64
    table = out.read_text()
    assert table.startswith("| method | tok/s |")
    assert "| lowrank |" in table
    assert "nano, 64 tokens per update" in table


def test_a_method_that_fails_leaves_the_others(text_folder, monkeypatch, capsys):
    measured = bench.measure

    def fails(overrides, steps):
        if overrides["method"] == "lowrank":
            raise LowriseError("no room")
        return measured(overrides, steps)

    monkeypatch.setattr(bench, "_in_a_process", fails)
    assert main(words(text_folder, "--methods", "adamw", "lowrank")) == 0
    said = capsys.readouterr().out
    assert "lowrank: no room" in said
    assert "adamw" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "adamv"], "no method 'adamv'; the nearest is 'adamw'"),
        (["--steps", "0"], "--steps 0: give at least 1"),
        (["--out", "x.json"], "name a Markdown file"),
        (["--set", "train.batch=3"], "unknown key"),
    ],
)
def test_wrong_requests_get_a_message(more, message, text_folder, capsys):
    assert main(["bench", *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
