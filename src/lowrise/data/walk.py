"""The files below a folder that are text: all of them, or those that a glob matches, in a fixed order."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import deque
from pathlib import Path

from lowrise.errors import UsageError


def walk(root: Path, pattern: tuple[str, ...] = ("**",), left: list[Path] | None = None) -> list[Path]:
    """Every file below `root` whose path fits the parts of a glob, links followed; ordered by path.

    "**" takes any number of folders; a name that begins with a dot fits only a part that does, and Python's
    cache (`__pycache__`) only its own name: what `is_left_out` and fits no part is added to `left`. A file
    that is reached by several paths that fit counts once, under its own path if that is one of them.

    Raises:
        UsageError: a folder that cannot be read, or a link that leads nowhere and would have fitted.
    """
    found: list[Path] = []
    seen: set[tuple[Path, frozenset[int]]] = set()
    folders, links = [(root, _closed({0}, pattern))], deque[tuple[Path, frozenset[int]]]()
    while folders or links:
        # Links come last: what is below them is then known under its own path. A real folder, met again with
        # as much of the pattern left, has the same files: so circles end, and the time is linear.
        folder, states = folders.pop() if folders else links.popleft()
        if (here := (folder.resolve(), states)) in seen:
            continue
        seen.add(here)
        for entry in _entries(folder):
            path, after = folder / entry.name, _after(states, entry.name, pattern)
            fits = len(pattern) in after
            if left is not None and not after and is_left_out(entry.name):
                left.append(path)
            if entry.is_dir():
                if after and entry.is_symlink():
                    links.append((path, after))
                elif after:
                    folders.append((path, after))
            elif fits and entry.is_file():
                found.append(path)
            elif fits and entry.is_symlink():
                raise UsageError(f"{path} is a link that leads nowhere: repair or remove it.")
    return _once(sorted(found, key=lambda file: file.relative_to(root).as_posix()))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be read ({error.strerror or error}): change its rights, or leave it "
            "out."
        ) from error


def _after(states: frozenset[int], name: str, pattern: tuple[str, ...]) -> frozenset[int]:
    """How many parts of the pattern are used up after one more name, for each way to use them."""
    after = set()
    for used in states:
        part = pattern[used] if used < len(pattern) else None
        if part is None or (is_left_out(name) and part != name and not (part[0] == name[0] == ".")):
            continue
        if part == "**":
            after.add(used)
        elif fnmatch.fnmatchcase(name, part):
            after.add(used + 1)
    return _closed(after, pattern)


def is_left_out(name: str) -> bool:
    """Whether a name in a folder is no text of its own accord: hidden (`.git`, `.ipynb_checkpoints`,
    `.DS_Store`), or the cache that Python writes beside its sources."""
    return name.startswith(".") or name == "__pycache__"


def _closed(states: set[int], pattern: tuple[str, ...]) -> frozenset[int]:
    """With "**" standing for no folder too."""
    closed = set(states)
    for used in sorted(states):
        while used < len(pattern) and pattern[used] == "**":
            used += 1
            closed.add(used)
    return frozenset(closed)


def matching(pattern: str) -> list[Path]:
    """The files that a glob matches, by `walk` from the last folder that it names without a wildcard."""
    parts = Path(pattern).parts
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root = Path(*parts[:fixed])
    return walk(root, parts[fixed:]) if root.is_dir() else []


def _once(files: list[Path]) -> list[Path]:
    """Each real file once, in the place of its own path if that is among them, else of the first link."""
    chosen: dict[Path, Path] = {}
    for file in files:
        real = file.resolve()
        if real not in chosen or file.absolute() == real:
            chosen[real] = file
    kept = set(chosen.values())
    return [file for file in files if file in kept]
