"""Where a command shall write: refused before the work, or the disk's refusal as one message that names the
file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import config_for, run_training, write_text

from lowrise.cli import main
from lowrise.compare.workers import hold_directory
from lowrise.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    write_text(folder / "text.jsonl")
    run_training(config_for(folder, "lowrank"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    folder = trained.parent / "exported"
    assert main(["export", str(trained), "--out", str(folder)]) == 0
    return folder


def error_of(words: list[str], capsys, code: int = 2) -> str:
    assert main(words) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_where_a_folder_belongs_is_refused(below, trained, exported, tmp_path, capsys):
    file = tmp_path / "file.txt"
    file.write_text("text")
    place = str(file / below)
    sweep = ["sweep", str(trained), "--vary", "optimizer.lr=0.1,0.2", "--out", place]
    for words in (
        ["export", str(trained), "--out", place],
        ["factorize", str(exported), "--rank", "4", "--out", place],
        ["train", "--run", place],
        sweep,
    ):
        assert f"{file} is a file; name a folder" in error_of(words, capsys), words
    error = error_of(["import", str(exported), "--run", place], capsys)
    assert f"--run {place}: {file} is a file; name a folder" in error


@pytest.mark.parametrize("command", ["import", "factorize", "train"])
def test_a_file_for_a_hugging_face_folder_is_refused(command, tmp_path, capsys):
    file = tmp_path / "file.txt"
    file.write_text("text")
    words = {
        "import": ["import", str(file), "--run", str(tmp_path / "run")],
        "factorize": ["factorize", str(file), "--rank", "4", "--out", str(tmp_path / "out")],
        "train": ["train", "--init.model", str(file), "--run", str(tmp_path / "run")],
    }[command]
    assert f"{file} is a file: give a Hugging Face folder" in error_of(words, capsys)


def test_a_file_for_a_track_is_refused(tmp_path, capsys):
    file = tmp_path / "file.txt"
    file.write_text("text")
    for part in ("run", "check", "table"):
        assert f"{file} is not a track" in error_of(["track", part, str(file)], capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["report", "RUN", "--out"],
        ["inspect", "RUN", "--out"],
        ["plan", "--model", "nano", "--picture"],
        ["bench", "--methods", "adamw", "--preset", "nano", "--steps", "1", "--out"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_in_no_folder_is_refused_before_the_work(words, trained, tmp_path, capsys):
    words = [str(trained) if word == "RUN" else word for word in words]
    place = tmp_path / "none" / "page.md"
    assert f"{place}: there is no folder {place.parent}" in error_of([*words, str(place)], capsys)
    assert "is a folder" in error_of([*words, str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", "[server]\nport = 80\n"),
        ("config.toml", "no TOML at all"),
        ("tokenizer.json", "{}"),
        ("report.html", "<p>of the quarter</p>"),
        ("metrics.jsonl", ""),
    ],
)
def test_a_run_replaces_no_file_of_others(name, content, trained, tmp_path, capsys):
    """`--run .` in a folder of one's own work, or in an exported model."""
    (tmp_path / name).write_text(content)
    words = ["train", str(trained / "config.toml"), "--run", str(tmp_path)]
    assert f"{tmp_path / name} is there, which no run wrote" in error_of(words, capsys)
    assert (tmp_path / name).read_text() == content
    assert {entry.name for entry in tmp_path.iterdir()} <= {name, ".lock"}


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(trained, tmp_path, capsys):
    for name in ("config.toml", "environment.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert main(["train", str(trained / "config.toml"), "--run", str(tmp_path)]) == 0


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_to_nowhere_is_no_folder(target, trained, exported, tmp_path, capsys):
    link = tmp_path / "link"
    link.symlink_to(target)
    for words in (["train", "--run"], ["export", str(trained), "--out"], ["import", str(exported), "--run"]):
        said = error_of([*words, str(link)], capsys)
        assert "is a symbolic link" in said


def test_a_pipe_is_no_source(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    words = ["data", "prepare", "--cache", str(tmp_path), "--valid_fraction", "0.1", "--source"]
    for place in (tmp_path / "pipe", "/dev/zero"):
        assert "is a pipe or a device" in error_of([*words, str(place)], capsys)


def test_a_working_folder_that_is_gone_is_a_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "working folder is not there any more" in error_of(["methods"], capsys)
    monkeypatch.chdir(tmp_path)


def test_an_output_that_is_full_is_named():
    words = [sys.executable, "-m", "lowrise", "methods"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: No space left on device")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["export", "import", "factorize"])
def test_what_a_killed_command_left_is_cleared_up(command, trained, exported, tmp_path):
    """Folders aside of a process that is gone; an earlier result that it had moved away comes back."""
    words = {
        "export": ["export", str(trained), "--out"],
        "import": ["import", str(exported), "--run"],
        "factorize": ["factorize", str(exported), "--rank", "4", "--tokens", "64", "--out"],
    }[command]
    out, gone = tmp_path / "out", 2**22 + 1  # above the largest process number
    assert main([*words, str(out)]) == 0
    before = sorted(entry.name for entry in out.iterdir())
    out.rename(tmp_path / f".out.{gone}.old.tmp")
    (tmp_path / f".out.{gone}.tmp").mkdir()
    (tmp_path / f".out.{gone}.tmp" / "model.safetensors").write_text("half")
    assert main([*words, str(out)]) == 2, "the earlier one is in its place again"
    assert sorted(entry.name for entry in out.iterdir()) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert main([*words, str(out), "--force"]) == 0


# Files of this size end in an error of the system, in whatever language they are written.
FULL = 70_000


@pytest.fixture
def full_disk(monkeypatch, trained) -> Iterator[None]:
    monkeypatch.setenv("LOWRISE_CACHE", str(trained.parent / "cache"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["export", "RUN", "--out", "OUT"], "out/shard-0.safetensors"),
        (["export", "RUN", "--form", "factored", "--out", "OUT"], "out/shard-0.safetensors"),
        (["export", "RUN", "--to", "safetensors", "--out", "OUT"], "out/model.safetensors"),
        (["export", "RUN", "--to", "gguf", "--out", "OUT"], "out/model.gguf"),
        (["import", "EXPORTED", "--run", "OUT"], "model.safetensors"),
        (
            ["factorize", "EXPORTED", "--rank", "4", "--measure", "TEXT", "--out", "OUT"],
            "out/shard-0.safetensors",
        ),
        (["train", "RECIPE", "--run", "OUT"], "safetensors"),
    ],
    ids=lambda part: "-".join(part[:4]) if isinstance(part, list) else "",
)
def test_a_full_disk_is_a_message_and_leaves_no_half_folder(
    words, file, trained, exported, tmp_path, full_disk, capsys
):
    if "gguf" in words:
        pytest.importorskip("gguf")
    out = tmp_path / "out"
    names = {"RUN": trained, "EXPORTED": exported, "OUT": out, "TEXT": trained.parent / "text.jsonl"}
    names["RECIPE"] = trained / "config.toml"
    error = error_of([str(names.get(word, word)) for word in words], capsys, code=1)
    assert file in error
    assert "gguf" in words or "File too large" in error  # numpy has words of its own
    if words[0] != "train":
        assert [entry.name for entry in tmp_path.iterdir()] == []


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_the_report_of_a_run_is_not_replaced(command, trained, capsys) -> None:
    """Nor by the plan of another command, whatever was written there first."""
    report = (trained / "report.html").read_bytes()
    words = [command, str(trained / "config.toml"), "--budget", "tokens=1k", "--out", str(trained)]
    if command == "sweep":
        words = [*words, "--vary", "optimizer.lr=1e-3,2e-3"]
    assert "is the folder of a run (lowrise train): give another --out" in error_of(words, capsys)
    assert (trained / "report.html").read_bytes() == report


def test_the_plan_of_another_command_is_not_replaced(tmp_path: Path) -> None:
    for command in ("lowrise sweep", "lowrise sweep"):
        with hold_directory(tmp_path, command):
            assert (tmp_path / ".lock").read_text().endswith(" lowrise sweep")
    with pytest.raises(UsageError, match="is the folder of lowrise sweep, whose plan and report"):
        hold_directory(tmp_path, "lowrise compare").__enter__()
    assert (tmp_path / ".lock").read_text().endswith(" lowrise sweep")
