"""SHA-256 of the sources, remembered for large ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowrise.data.corpora import SourceFile
from lowrise.errors import UsageError
from lowrise.files import read_json, require_seal, sealed, write_whole

# Smaller files are hashed anew at every start: as fast as looking the hash up, and never out of date.
REMEMBER_HASH_FROM_BYTES = 16 * 2**20
READ_BYTES = 2**24


class HashCache:
    """SHA-256 of files; for large ones remembered in `path` by their place, size, times of change and inode.

    Two processes may write at once: one of the two sets of entries is lost, and hashed again another day.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        self._known: dict[str, Any] = {}
        try:
            record = read_json(path)
            require_seal(record)
            self._known = record["files"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # none yet, or damaged: every file is hashed again

    def sha256(self, file: SourceFile, on_bytes: Callable[[int], None] = lambda count: None) -> str:
        """Hash of the file's stored bytes; of a dataset, of its Arrow files' hashes in order. `on_bytes` is
        called with the number of bytes after each read.
        """
        hashes = [self._of(path, file.name, on_bytes) for path in file.paths]
        if file.kind != "dataset":
            return hashes[0]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def _of(self, path: Path, name: str, on_bytes: Callable[[int], None]) -> str:
        try:
            stamp = stamp_of(path)
            large = stamp[0] >= REMEMBER_HASH_FROM_BYTES
            known = self._known.get(str(path.resolve())) if large else None
            if known is not None and known[:-1] == stamp:
                on_bytes(stamp[0])
                return str(known[-1])
            whole = hashlib.sha256()
            with path.open("rb") as file:
                while data := file.read(READ_BYTES):
                    whole.update(data)
                    on_bytes(len(data))
        except OSError as error:
            raise UsageError(
                f"{name} cannot be read ({error.strerror or error}): check the path and its rights."
            ) from error
        if large:
            self._known[str(path.resolve())] = [*stamp, whole.hexdigest()]
            self._changed = True
        return whole.hexdigest()

    def save(self) -> None:
        """Write what was learnt, if anything."""
        if self._changed:
            write_whole(self._path, json.dumps(sealed({"files": self._known}), indent=0))
            self._changed = False


def stamp_of(path: Path) -> list[int]:
    """What changes when a file is written or replaced: its size, times of change, inode and device."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
