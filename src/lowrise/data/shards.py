"""Token shards on disk: little-endian integers without a header, and an `index.json` that is written last.

    train-00000.bin, valid-00000.bin, ...   ids: uint16 if the vocabulary has at most 65,536, else uint32
    tokenizer.json                          the tokenizer that wrote them
    index.json                              what they are (keys: docs/data.md); without it: unfinished

The stream of a split is its shards one after another: every document, each followed by the separator token.
Each block of `BLOCK_BYTES` of a shard has a checksum in the index, so that damage is found and named.
"""

from __future__ import annotations

import errno
import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrise.errors import LowriseError
from lowrise.files import exclusive, naming

TokenIds = npt.NDArray[np.int64]
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
BLOCK_BYTES = 2**20  # with a checksum of its own
OPEN_SHARDS = 128  # each mapped file holds a file descriptor, and 1,024 is a common limit


def dtype_for(vocab_size: int) -> str:
    """The smallest dtype that holds every id of the vocabulary: "uint16" or "uint32"."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


@dataclass(frozen=True)
class Shard:
    """One file of token ids. `blocks` has 32 digits of the SHA-256 of each `BLOCK_BYTES` of it."""

    file: str
    tokens: int
    sha256: str
    blocks: tuple[str, ...]


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
        LowriseError: a shard is missing, a link, or has another size than the index says.
    """

    def __init__(self, directory: Path, shards: tuple[Shard, ...], dtype: str, vocab_size: int) -> None:
        self._paths = [directory / shard.file for shard in shards]
        self._shards = shards
        self._dtype = DTYPES[dtype]
        self._vocab_size = vocab_size
        self._ends = list(accumulate(shard.tokens for shard in shards))
        self._open: OrderedDict[int, npt.NDArray[np.unsignedinteger]] = OrderedDict()
        for number in range(len(shards)):
            self._require_size(number)

    def _require_size(self, number: int) -> None:
        path = self._paths[number]
        wanted = self._shards[number].tokens * self._dtype.itemsize
        if path.is_symlink():
            raise damaged(path, "is a link, which a prepared corpus never holds")
        found = path.stat().st_size if path.is_file() else None
        if found != wanted:
            raise damaged(path, "is missing" if found is None else f"has {found} bytes instead of {wanted}")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return list(self._paths)

    def read(self, start: int, stop: int) -> TokenIds:
        """Tokens `start` to `stop` of the stream as int64, where 0 <= start <= stop <= len(self).

        Raises `LowriseError` for an id outside of the vocabulary, whatever the checksums said.
        """
        tokens = np.empty(stop - start, dtype=np.int64)
        shard = bisect_right(self._ends, start)
        done = start
        while done < stop:
            first = self._ends[shard] - self._shards[shard].tokens
            end = min(stop, self._ends[shard])
            part = tokens[done - start : end - start]
            part[:] = self._mapped(shard)[done - first : end - first]
            self._require_known(self._paths[shard], part)
            done, shard = end, shard + 1
        return tokens

    def _mapped(self, shard: int) -> npt.NDArray[np.unsignedinteger]:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._require_size(shard)  # it may have been closed for hours
            self._open[shard] = np.memmap(self._paths[shard], dtype=self._dtype, mode="r")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[shard]

    def _require_known(self, path: Path, ids: npt.NDArray[np.integer]) -> None:
        largest = int(ids.max(initial=0))
        if largest >= self._vocab_size:
            raise damaged(
                path, f"has the token id {largest}, but the vocabulary ends at {self._vocab_size - 1}"
            )

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Raise `LowriseError` for the first block that is not as it was written, or has an id outside of the
        vocabulary.

        Streams on a few threads, a block of memory each; `on_bytes` is called with the bytes that each shard
        has added.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for number, (path, shard) in enumerate(zip(self._paths, self._shards, strict=True)):
                self._require_size(number)
                size = shard.tokens * self._dtype.itemsize
                with path.open("rb") as file:
                    check = partial(self._verify_block, path, shard, file.fileno())
                    list(pool.map(check, range(len(shard.blocks))))
                on_bytes(size)

    def _verify_block(self, path: Path, shard: Shard, handle: int, number: int) -> None:
        start = number * BLOCK_BYTES
        data = os.pread(handle, BLOCK_BYTES, start)
        if digest_of_block(data) != shard.blocks[number]:
            raise damaged(
                path,
                f"has another content than was written, in block {number} (bytes {start} to "
                f"{start + len(data)})",
            )
        self._require_known(path, np.frombuffer(data, self._dtype))


def digest_of_block(data: bytes) -> str:
    """The checksum of a block: 128 bits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def damaged(path: Path, state: str) -> LowriseError:
    """The sentence about a file of a prepared corpus that is not as it was written."""
    return LowriseError(
        f"{path} {state}: delete the directory {path.parent} and start again, it is then prepared again."
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
        self._blocks: list[str] = []
        self._unfinished = bytearray()  # the block that is being filled
        self._tokens = 0
        self._file = self._aside.open("wb")

    def write(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append token ids, which must fit the dtype."""
        data = tokens.astype(self._dtype, copy=False).tobytes()
        with naming(self._path):
            self._file.write(data)
        self._sha256.update(data)
        self._tokens += len(tokens)
        self._unfinished += data
        while len(self._unfinished) >= BLOCK_BYTES:
            self._end_block()

    def _end_block(self) -> None:
        self._blocks.append(digest_of_block(bytes(self._unfinished[:BLOCK_BYTES])))
        del self._unfinished[:BLOCK_BYTES]

    def close(self) -> Shard:
        """Make the shard whole and say what it is."""
        if self._unfinished:
            self._end_block()
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        os.replace(self._aside, self._path)
        return Shard(self._path.name, self._tokens, self._sha256.hexdigest(), tuple(self._blocks))

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
