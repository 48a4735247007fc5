"""A disk that fails once, at any operation that changes files."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from lowrise.export import shards

NUMBERS = (errno.EIO, errno.ENOSPC, errno.EACCES)


class FailingDisk:
    """Counts what changes files below `root`, and lets the operation of number `fails` (from 0) fail.

    Opening for writing, writing (as the system sees it), flushing, renaming, removing and making folders, and
    safetensors files that the library writes by itself.
    """

    def __init__(self, root: Path, fails: int | None = None, number: int = errno.EIO) -> None:
        self.root, self.fails, self.number = str(root), fails, number
        self.done: list[str] = []
        self.names: dict[int, str] = {}

    def happens(self, kind: str, path: Any) -> None:
        if not str(path).startswith(self.root):
            return
        self.done.append(f"{kind} {Path(str(path)).relative_to(self.root)}")
        if len(self.done) - 1 == self.fails:
            named = () if kind in ("write", "fsync") else (str(path),)
            raise OSError(self.number, os.strerror(self.number), *named)

    @contextmanager
    def in_place(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        disk, io_open, os_open, fsync = self, io.open, os.open, os.fsync

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.happens("write", self.name)
                return super().write(data)

        def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **more):
            writes = set(mode) & {*"wax+"}
            if not writes or not str(file).startswith(disk.root):
                return io_open(file, mode, buffering, encoding, *rest, **more)
            disk.happens("open", file)
            raw = Raw(os.fspath(file), mode.replace("b", "").replace("t", ""))
            disk.names[raw.fileno()] = str(file)
            stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, encoding=encoding or "utf-8")

        def opened_by_number(path: Any, *rest: Any, **more: Any) -> int:
            handle = os_open(path, *rest, **more)
            disk.names[handle] = str(path)
            return handle

        def saved(tensors: Any, path: Any, **more: Any) -> None:
            try:
                disk.happens("write", path)
            except OSError as error:  # as the library tells it
                raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None
            save_file(tensors, path, **more)

        def flushed(handle: int) -> None:
            disk.happens("fsync", disk.names.get(handle, ""))
            fsync(handle)

        def before(kind: str, action: Callable[..., Any]) -> Callable[..., Any]:
            def failing(path: Any, *rest: Any, **more: Any) -> Any:
                if more.get("dir_fd") is None:
                    disk.happens(kind, path)
                return action(path, *rest, **more)

            return failing

        with monkeypatch.context() as patch:
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            patch.setattr(os, "open", opened_by_number)
            patch.setattr(os, "fsync", flushed)
            patch.setattr(shards, "save_file", saved)
            for kind in ("rename", "replace", "unlink", "mkdir", "rmdir"):
                patch.setattr(os, kind, before(kind, getattr(os, kind)))
            yield
