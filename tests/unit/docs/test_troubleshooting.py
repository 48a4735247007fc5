"""Every mistake of docs/troubleshooting.md gets the answer that stands there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from doc_pages import blocks_of
from small_runs import config_for, run_training

from lowrise import cli

PAGE = "docs/troubleshooting.md"
EXCHANGES = [
    (lines[0], lines[1])
    for block in blocks_of(PAGE, "text")
    for lines in (exchange.splitlines() for exchange in block.split("$ ")[1:])
]


@pytest.fixture(scope="module")
def place(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run of two updates."""
    folder = tmp_path_factory.mktemp("first_hour")
    (folder / "story.txt").write_text("Once upon a time there was a matrix of small rank.\n" * 200)
    config = config_for(text_folder, "adamw", **{"train.steps": 2, "eval.every": 0, "optimizer.lr": 0.003})
    run_training(config, folder / "runs" / "done")
    return folder


def test_there_are_ten() -> None:
    assert len(EXCHANGES) >= 10
    assert all(command.startswith("lowrise ") for command, _ in EXCHANGES)


@pytest.mark.parametrize(("command", "answer"), EXCHANGES, ids=[command for command, _ in EXCHANGES])
def test_the_answer_is_the_documented_one(command, answer, place: Path, monkeypatch, capsys) -> None:
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU here, and the command would train")
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert cli.main(shlex.split(command)[1:]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].replace(str(place), "HERE") == answer
    assert sorted(place.rglob("*")) == before, "nothing was written"
