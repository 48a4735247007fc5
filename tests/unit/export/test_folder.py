"""A folder that is written whole or not at all, and never over what somebody else put there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowrise.errors import UsageError
from lowrise.export.folder import whole_folder


def write(path: Path, text: str = "new", force: bool = False, name: str = "a.txt") -> None:
    with whole_folder(path, force=force, origin={"step": 3}) as aside:
        (aside / name).write_text(text)


def test_it_appears_whole_and_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with whole_folder(path, force=False, origin={"step": 3}) as aside:
        (aside / "a.txt").write_text("new")
        assert not path.exists()
    assert json.loads((path / "lowrise.json").read_text()) == {"step": 3, "files": ["a.txt"]}
    assert [entry.name for entry in path.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_a_free_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_nothing_new_and_the_old_as_it_was(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "out"
    if force:
        write(path, "old")
    with pytest.raises(IsADirectoryError), whole_folder(path, force=force, origin={}) as aside:
        aside.write_text("half")
    assert [entry.name for entry in tmp_path.iterdir()] == (["out"] if force else [])
    assert not force or (path / "a.txt").read_text() == "old"


def test_force_replaces_an_earlier_export_and_its_files(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, "old", name="b.txt")
    with pytest.raises(UsageError, match=r"not empty.*--force"):
        write(path)
    write(path, force=True)
    assert sorted(entry.name for entry in path.iterdir()) == ["a.txt", "lowrise.json"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("earlier", [False, True])
def test_force_never_takes_what_no_export_wrote(tmp_path: Path, earlier: bool) -> None:
    path = tmp_path / "out"
    if earlier:
        write(path)
    path.mkdir(exist_ok=True)
    (path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"thesis\.tex, which no export or import wrote"):
        write(path, force=True)
    assert (path / "thesis.tex").read_text() == "precious"


def test_files_and_links_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name, sentence in (("file", "is a file"), ("link", "symbolic link")):
        with pytest.raises(UsageError, match=sentence):
            write(tmp_path / name, force=True)
    assert list((tmp_path / "real").iterdir()) == []
