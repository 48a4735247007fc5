"""Files that are whole or absent, and locks that die with their process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that it is seen whole or not at all, also after a power cut."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(path: Path, busy: Callable[[IO[str]], None]) -> Iterator[IO[str]]:
    """Hold an exclusive lock on the file `path`, which is created and stays; the system drops it with the
    process.

    If another process holds it, `busy` is called with the open file: it may raise, else the lock is waited
    for. Yields the open file. Raises `OSError` where the file system has no locks.
    """
    import fcntl  # not on Windows, where only the commands that lock are lost

    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy(stream)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream
