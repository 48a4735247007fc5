"""The commands of docs/finetuning.md run as they stand, with fewer updates; its samples are samples."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks_of

from lowrise import cli
from lowrise.config import load
from lowrise.data.samples import SampleFormat, spans_of
from lowrise.methods import METHODS
from lowrise.train import plan_run

PAGE = "docs/finetuning.md"
RECIPES = sorted((ROOT / "recipes" / "finetuning").glob("*.toml"))
QUICK = "--train.steps 2 --eval.every 1 --eval.tokens 256 --log.tensorboard false --sample.tokens 0"
SMALL = "--train.global_batch_size 2 --log.telemetry_every 0 --train.device cpu"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def shorten(folder: Path) -> None:
    """Few lines of the task: the whole is prepared in half a minute."""
    for name, lines in (("text", 8), ("train", 60), ("valid", 20)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def test_the_commands_run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    commands = blocks_of(PAGE, "bash")[0].strip().splitlines()
    assert [line.split()[0] for line in commands] == ["python", *["lowrise"] * 4]
    program, *words = shlex.split(commands[0])[1:]
    monkeypatch.setattr(sys, "argv", [program, *words])
    runpy.run_path(program, run_name="__main__")
    shorten(place / "docstrings")
    for line in commands[1:]:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words += shlex.split(f"{QUICK} {SMALL}")
        assert cli.main(words) == 0, line
    shown = capsys.readouterr().out
    assert "samples in" in shown
    assert "bits per byte" in shown


def test_the_task_is_the_same_every_time_and_no_file_is_in_two_parts(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "docstring_task.py"))
    source = 'def area(r):\n    """The area of a circle.\n\n    More."""\n    return 3.14 * r**2\n'
    (sample,) = script["samples_of"](source)
    assert sample == {
        "prompt": "def area(r):\n    return 3.14 * r**2\n# In short:",
        "completion": " The area of a circle.",
    }
    assert script["part_of"]("ast.py") == script["part_of"]("ast.py") in ("text", "train", "valid")


def test_the_lines_of_samples_are_samples() -> None:
    lines = [line for block in blocks_of(PAGE, "json") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert [span.counts for span in spans_of(json.loads(line), SampleFormat(), "page")] == [False, True]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_have_as_many_bytes_of_state(path: Path) -> None:
    """All but the reference and the base: AdamW in bfloat16, to 1%."""
    config = load(path)
    assert config.method in METHODS
    state = plan_run(config, 1024).state_bytes
    same = plan_run(load(path.with_name("adamw-bfloat16.toml")), 1024).state_bytes
    if path.stem in ("adamw", "base"):
        assert state > 1.2 * same
    else:
        assert state == pytest.approx(same, rel=0.01)
