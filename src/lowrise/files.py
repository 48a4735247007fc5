"""Files that are whole or absent, JSON that says when it is not what was written, and locks that die with
their process."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, TypeGuard

from lowrise.errors import UsageError


def cache_root(cache: str | None = None) -> Path:
    """The argument, else $LOWRISE_CACHE, else ~/.cache/lowrise."""
    return Path(cache or os.environ.get("LOWRISE_CACHE") or "~/.cache/lowrise").expanduser().absolute()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that it is seen whole or not at all, also after a power cut."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), aside.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what is told
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(aside):
            error.filename = str(path)  # the one that was asked for
        raise
    flush(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of writing, flushing and closing, which the system raises without."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file. Raises `UsageError` for a link."""
    with naming(path), open_itself(path, "a") as stream:
        stream.write(text)


def open_itself(path: Path, mode: Literal["a", "a+"]) -> IO[str]:
    """Open a text file for adding. Raises `UsageError` for a symbolic link: what is written at a known place
    of somebody's folder could go to any file."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    try:
        return open(path, mode, encoding="utf-8", opener=opener)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise UsageError(
                f"{path} is a symbolic link, through which nothing is written: remove it."
            ) from None
        raise


def is_plain_name(name: object) -> bool:
    """Whether this can only name something directly inside a folder: no separators, no `..`, not absolute."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\\:\0]", name)


def read_json(path: Path) -> Any:
    """The value in a JSON file, strictly: UTF-8, no NaN, no depth that Python cannot hold.

    Raises `OSError` where it cannot be read, and `ValueError` that says what is wrong with it.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a `sha256` over all the rest (as JSON with sorted keys and no spaces)."""
    return {**value, "sha256": _seal(value)}


def require_seal(value: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the object is one of `sealed`, in every part."""
    rest = {key: part for key, part in value.items() if key != "sha256"}
    if value.get("sha256") != _seal(rest):
        raise ValueError("it does not have the SHA-256 that it was written with")


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_count(value: object) -> TypeGuard[int]:
    """Whether this is a whole number from 0 on, and no boolean."""
    return type(value) is int and value >= 0


def require_file_place(path: Path, flag: str, kind: str) -> None:
    """Raise `UsageError`, before the work, for a path where no file can be written: a folder, or none above
    it.
    """
    place = path.expanduser()
    if place.is_dir():
        raise UsageError(f"{flag} {path} is a folder: name the {kind} file.")
    if not place.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {place.parent}; make it, or name another place.")


def require_folder_place(path: Path, flag: str) -> Path:
    """The path, `~` expanded. Raises `UsageError`, before anything is done, where no folder can be made."""
    place = path.expanduser()
    broken = next((p for p in (place, *place.parents) if p.is_symlink() and not p.exists()), None)
    if broken is not None:
        raise UsageError(
            f"{flag} {path}: {broken} is a symbolic link to nowhere; remove it, or name a folder."
        )
    existing = next((p for p in (place, *place.parents) if p.exists()), place)
    if existing.exists() and not existing.is_dir():
        raise UsageError(f"{flag} {path}: {existing} is a file; name a folder.")
    require_writable(existing, f"{flag} {path}", "name another folder")
    return place


def require_writable(folder: Path, what: str, remedy: str) -> None:
    """Raise `UsageError`, before the work, for a folder of another user or on a disk that is only read."""
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{what}: nothing may be written into {folder}; {remedy}, or change its rights.")


def is_known(value: object) -> TypeGuard[float]:
    """True for a finite int or float; False for `None`, NaN, infinities, booleans and anything else."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that any parser takes: a number that is not finite is null, and its name ("NaN", "Infinity",
    "-Infinity") stands beside it in an object as `KEY_not_finite`."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        names = {f"{k}_not_finite": _name(v) for k, v in value.items() if _not_finite(v)}
        return {k: _finite(v) for k, v in value.items()} | names
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if _not_finite(value) else value


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def remove_left_behind(folder: Path) -> None:
    """Delete the temporary files of `write_whole` whose process is gone. For the holder of the folder."""
    for entry in folder.iterdir():
        match = re.fullmatch(r"\..+\.(\d+)\.tmp", entry.name)
        if match and not is_alive(int(match[1])) and not (entry.is_dir() and not entry.is_symlink()):
            entry.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether another process has this number; False for this one, which has left nothing yet."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(path: Path, busy: Callable[[IO[str]], None]) -> Iterator[IO[str]]:
    """Hold an exclusive lock on the file `path`, which is created and stays; the system drops it with the
    process.

    If another process holds it, `busy` is called with the open file: it may raise, else the lock is waited
    for. Yields the open file. Raises `OSError` where the file system has no locks, `UsageError` for a link.
    """
    import fcntl  # not on Windows, where only the commands that lock are lost

    with open_itself(path, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy(stream)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream
