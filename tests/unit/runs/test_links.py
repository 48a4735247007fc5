"""A run folder from somewhere else may hold links to any file: nothing is written through them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import config_for

from lowrise.compare.workers import hold_directory
from lowrise.errors import UsageError
from lowrise.files import append_text, exclusive
from lowrise.runs.directory import RunDirectory

FILES = [
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "metrics.superseded.jsonl",
    "summary.json",
    "report.html",
    "tokenizer.json",
    "sample.txt",
    "services.json",
]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "kept.txt"
    file.write_text("kept")
    return file


@pytest.mark.parametrize("name", FILES)
def test_a_run_writes_no_file_through_a_link(name, tmp_path, kept, text_folder):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(kept)
    with pytest.raises(UsageError, match=f"{name} is a symbolic link"):
        RunDirectory(tmp_path / "run").begin(config_for(text_folder, "muon"))
    assert kept.read_text() == "kept"


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_run_writes_no_folder_through_a_link(name, tmp_path, text_folder):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"{name} is a symbolic link"):
        RunDirectory(tmp_path / "run").begin(config_for(text_folder, "muon"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("target", ["kept.txt", "not yet"])
def test_locks_and_added_lines_go_through_no_link(target, tmp_path, kept):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / target)
    for hold in (
        RunDirectory(folder).locked(),
        hold_directory(folder, "lowrise compare"),
        exclusive(folder / ".lock", lambda stream: None),
    ):
        with pytest.raises(UsageError, match=r"\.lock is a symbolic link"), hold:
            pass
    with pytest.raises(UsageError, match=r"\.lock is a symbolic link"):
        append_text(folder / ".lock", "more")
    assert kept.read_text() == "kept"
    assert not (tmp_path / "not yet").exists()
