"""Where a command shall write: refused before the work, or the disk's refusal as one message that names the
file."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import config_for, run_training, write_text

from lowrise.cli import main


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
