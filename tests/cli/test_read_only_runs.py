"""A run folder that was copied, belongs to another user and may only be read: each command works on it, or
says in one message what to do, and the folder stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import config_for, run_training

ENDS = """
import contextlib, io, json, sys
from lowrise.cli import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(words)
    print(json.dumps([code, " ".join(said.getvalue().split())]))
"""


def ends(commands: list[list[str]], home: Path) -> list[tuple[int, str]]:
    """Exit code and words of each command, for a user whom rights bind and who made no run."""
    user: list[str] = []
    if os.geteuid() == 0:  # root may do anything until it gives that up
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root without setpriv may write everywhere")
        user = [setpriv, "--bounding-set=-dac_override,-dac_read_search"]
    places = {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "LOWRISE_CACHE": str(home / "cache")}
    done = subprocess.run(
        [*user, sys.executable, "-c", ENDS, json.dumps(commands)],
        env=os.environ | places | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def change_rights(folder: Path, of_folders: int, of_files: int) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(of_folders if path.is_dir() else of_files)
    folder.chmod(of_folders)


@pytest.fixture
def copied(text_folder, tmp_path):
    run_training(config_for(text_folder, "spectron"), tmp_path / "made")
    shutil.copytree(tmp_path / "made", tmp_path / "run")
    yield tmp_path / "run"
    change_rights(tmp_path / "run", 0o755, 0o644)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in (folder, *folder.rglob("*"))}


def test_a_folder_that_may_only_be_read(copied, text_folder, tmp_path):
    change_rights(copied, 0o555, 0o444)
    before = state_of(copied)
    run, text, new = str(copied), str(text_folder / "text.jsonl"), str(tmp_path / "new")
    expected = [
        (["eval", run], 2, "was not made by this user"),
        (["eval", run, "--data.source", text], 0, "validation loss"),
        (["generate", run, "--tokens", "2"], 0, ""),
        (["inspect", run], 0, "% of the energy"),
        (["export", run, "--to", "safetensors", "--out", str(tmp_path / "out")], 0, "step"),
        (
            ["export", run, "--out", f"{run}/out"],
            2,
            f"nothing may be written into {run}; name another folder",
        ),
        (["report", run], 2, f"nothing may be written into {run}; name a file with --out"),
        (["report", run, "--out", str(tmp_path / "r.html")], 0, "Report:"),
        (["train", run], 2, "was not made by this user"),
        (["train", run, "--trust", "true"], 2, f"nothing may be written into {run}; name another folder"),
        (["train", f"{run}/config.toml", "--run", new], 0, f"Report: {new}/report.html"),
    ]
    found = ends([words for words, _, _ in expected], tmp_path / "home")
    for (words, code, told), (ended, said) in zip(expected, found, strict=True):
        assert (ended, told in said) == (code, True), (words, ended, said)
    assert state_of(copied) == before


def test_a_folder_that_may_not_be_read(copied, text_folder, tmp_path):
    change_rights(copied, 0o700, 0o000)
    run = str(copied)
    commands = [
        ["eval", run, "--data.source", str(text_folder / "text.jsonl")],
        ["generate", run, "--tokens", "2"],
        ["inspect", run],
        ["export", run, "--out", str(tmp_path / "out")],
        ["train", run, "--trust", "true"],
        ["train", f"{run}/config.toml", "--run", str(tmp_path / "new")],
    ]
    for words, (code, said) in zip(commands, ends(commands, tmp_path / "home"), strict=True):
        assert (code in (1, 2), f"{run}/config.toml" in said) == (True, True), (words, said)
        assert said.count("error: ") == 1, said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()
