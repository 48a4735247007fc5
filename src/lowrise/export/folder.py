"""A folder that is whole or absent: written beside its place, flushed, then renamed into it.

`lowrise.json` in it says what wrote it and lists its files. A folder that has no such list, or holds more
than is listed, is never replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowrise.errors import UsageError
from lowrise.files import flush, is_alive, require_folder_place, strict_json, write_whole

MARK = "lowrise.json"


@contextmanager
def whole_folder(path: Path, *, force: bool, origin: dict[str, Any], flag: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder, which becomes `path` when the block ends without an error, and else is
    removed.

    `origin` goes into `lowrise.json`; `flag` names the place on the command line. An empty folder is
    replaced, an earlier export only with `force`. Raises `UsageError`, before anything is written, for a
    place that is taken.
    """
    if path.parent.is_dir():
        _clear_up(path)
    _check_place(path, force, flag)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.mkdir()
    try:
        yield aside
        files = sorted(entry.name for entry in aside.iterdir())
        write_whole(aside / MARK, strict_json(origin | {"files": files}, indent=2) + "\n")
        for entry in aside.iterdir():
            flush(entry)
        _check_place(path, force, flag)
        _put_in_place(aside, path)
    except OSError as error:
        if str(error.filename).startswith(str(aside)):  # said by the name that was to be
            error.filename = str(path) + str(error.filename)[len(str(aside)) :]
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(aside: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    if path.exists():
        path.rename(old)
    try:
        aside.rename(path)
        flush(path.parent)
    finally:
        _give_back(old, path)


def _give_back(old: Path, path: Path) -> None:
    """What was in the place before goes back where nothing new came, and else away."""
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _clear_up(path: Path) -> None:
    """Remove what commands that were killed have left beside the place, after giving back what they had moved
    away."""
    for entry in path.parent.iterdir():
        match = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\.(old\.)?tmp", entry.name)
        if match is None or is_alive(int(match[1])) or entry.is_symlink():
            continue
        if match[2]:
            _give_back(entry, path)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _check_place(path: Path, force: bool, flag: str) -> None:
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link, which is not replaced: name another {flag}.")
    require_folder_place(path, flag)
    present = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if not present:
        return
    if not force:
        raise UsageError(
            f"{path} is there already and not empty: name another {flag}, or replace what this command wrote "
            "there earlier with --force true."
        )
    foreign = sorted(present - _listed(path) - {MARK})
    if foreign:
        raise UsageError(
            f"{path} holds {foreign[0]}, which no export or import wrote, so --force does not replace it: "
            f"move that away, or name another {flag}."
        )


def _listed(path: Path) -> set[str]:
    """Names of the files that an earlier export wrote; empty where none did."""
    try:
        files = json.loads((path / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in files if isinstance(name, str)} if isinstance(files, list) else set()
