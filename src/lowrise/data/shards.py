"""Token shards on disk: little-endian integers without a header, and an `index.json` that is written last.

    train-00000.bin, valid-00000.bin, ...   ids: uint16 if the vocabulary has at most 65,536, else uint32
    tokenizer.json                          the tokenizer that wrote them
    index.json                              what they are (keys: docs/data.md); without it: unfinished

The stream of a split is its shards one after another: every document, each followed by the separator token.
"""

from __future__ import annotations

import errno
import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrise.errors import LowriseError
from lowrise.files import exclusive, naming

TokenIds = npt.NDArray[np.int64]
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OPEN_SHARDS = 128  # each mapped file holds a file descriptor, and 1,024 is a common limit


def dtype_for(vocab_size: int) -> str:
    """The smallest dtype that holds every id of the vocabulary: "uint16" or "uint32"."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


@dataclass(frozen=True)
class Shard:
    """One file of token ids."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split and what they hold. `text_bytes` are the UTF-8 bytes of the documents alone."""

    documents: int
    tokens: int  # with one separator a document
    text_bytes: int
    shards: tuple[Shard, ...]


class ShardReader:
    """Random access to the tokens of a split, memory-mapped as needed.

    Raises:
        LowriseError: a shard is missing or has another size than the index says.
    """

    def __init__(self, directory: Path, shards: tuple[Shard, ...], dtype: str) -> None:
        self._paths = [directory / shard.file for shard in shards]
        self._shards = shards
        self._dtype = DTYPES[dtype]
        self._ends = list(accumulate(shard.tokens for shard in shards))
        self._open: OrderedDict[int, npt.NDArray[np.unsignedinteger]] = OrderedDict()
        for path, shard in zip(self._paths, shards, strict=True):
            wanted = shard.tokens * self._dtype.itemsize
            found = path.stat().st_size if path.is_file() else None
            if found != wanted:
                state = "is missing" if found is None else f"has {found} bytes instead of {wanted}"
                raise damaged(path, state)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> TokenIds:
        """Tokens `start` to `stop` of the stream as int64, where 0 <= start <= stop <= len(self)."""
        tokens = np.empty(stop - start, dtype=np.int64)
        shard = bisect_right(self._ends, start)
        done = start
        while done < stop:
            first = self._ends[shard] - self._shards[shard].tokens
            end = min(stop, self._ends[shard])
            tokens[done - start : end - start] = self._mapped(shard)[done - first : end - first]
            done, shard = end, shard + 1
        return tokens

    def _mapped(self, shard: int) -> npt.NDArray[np.unsignedinteger]:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = np.memmap(self._paths[shard], dtype=self._dtype, mode="r")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[shard]

    def verify(self, vocab_size: int) -> None:
        """Raise `LowriseError` for a shard with another hash, or with an id outside the vocabulary."""
        for number, (path, shard) in enumerate(zip(self._paths, self._shards, strict=True)):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise damaged(path, "has another content than was written")
            largest = max((int(block.max()) for block in _blocks(self._mapped(number))), default=0)
            if largest >= vocab_size:
                raise damaged(
                    path, f"has the token id {largest}, but the vocabulary ends at {vocab_size - 1}"
                )


def _blocks(tokens: npt.NDArray[np.unsignedinteger]) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    for start in range(0, len(tokens), 2**22):
        yield tokens[start : start + 2**22]


def damaged(path: Path, state: str) -> LowriseError:
    """The sentence about a file of a prepared corpus that is not as it was written."""
    return LowriseError(
        f"{path} {state}: delete the directory {path.parent} and start again, it is then prepared anew."
    )


class ShardWriter:
    """Writes one shard aside; `close` flushes it to the disk and gives it its name.

    Used as a context manager: an error on the way removes the unfinished file.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self._aside = path.with_name(f".{path.name}.tmp")
        self._dtype = DTYPES[dtype]
        self._sha256 = hashlib.sha256()
        self._tokens = 0
        self._file = self._aside.open("wb")

    def write(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append token ids, which must fit the dtype."""
        data = tokens.astype(self._dtype, copy=False).tobytes()
        with naming(self._path):
            self._file.write(data)
        self._sha256.update(data)
        self._tokens += len(tokens)

    def close(self) -> Shard:
        """Make the shard whole and say what it is."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        os.replace(self._aside, self._path)
        return Shard(self._path.name, self._tokens, self._sha256.hexdigest())

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            # Closing flushes, which fails again on a full disk; the file is removed all the same.
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._aside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created and stays.

    The system drops it when a process dies.
    """
    try:
        with exclusive(path, lambda stream: on_wait()):
            yield
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        raise LowriseError(
            f"The file system of {path.parent} has no locks ({error.strerror}): choose another one with "
            "data.cache or LOWRISE_CACHE."
        ) from error


@contextmanager
def explained_disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise LowriseError(
                f"No space left for prepared data in {directory} ({error.strerror}): free some, or choose "
                "another place with data.cache or LOWRISE_CACHE, and start again; the finished parts are "
                "kept and used."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise LowriseError(
                f"Prepared data cannot be written in {directory} ({error.strerror}): choose another place "
                "with data.cache or LOWRISE_CACHE."
            ) from error
        raise
