"""A stored file -> its bytes: decompressed in bounded memory, and no further than text would.

What begins as no text (archives, PDF, pointers of Git LFS) is refused by name.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lowrise.errors import LowriseError, UsageError

BLOCK_BYTES = 2**20
COMPRESSIONS = (".gz", ".xz", ".zst")
LARGEST_WINDOW = 2**31  # of zstandard: what `zstd --long=31` writes; memory is taken as the frames ask for it
# Of a zstandard file at once: a run of one byte expands 32,000 times, so to 64 MiB at most.
ZSTANDARD_BYTES = 2**11
HARMLESS_BYTES = 2**28  # may be the expansion of anything


class Limits(NamedTuple):
    """How long a line may be and how far a compressed file may expand: `data.max_line_bytes` and the like."""

    line_bytes: int = 2**28
    expansion: int = 300
    expanded_bytes: int = 2**40


LIMITS = Limits()


# How files begin that some name or glob may take for text.
OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"%PDF-": "a PDF",
    b"\x1f\x8b": "gzip data (without the name's .gz, or compressed twice)",
    b"\x28\xb5\x2f\xfd": "zstandard data (without the name's .zst, or compressed twice)",
    b"\xfd7zXZ\x00": "xz data (without the name's .xz, or compressed twice)",
    b"BZh": "bzip2 data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"PAR1": "a Parquet table",
    b"%!PS-": "PostScript",
    b"{\\rtf": "rich text (RTF)",
}

OWN_START = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}


class Block(NamedTuple):
    """Decompressed bytes, and how many stored bytes have been read so far."""

    data: bytes
    position: int


def compression_of(path: Path) -> str:
    """ ".gz", ".xz" or ".zst" by the file's name, whatever its case; "" for none."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def read_blocks(path: Path, limits: Limits = LIMITS) -> Iterator[Block]:
    """The file's decompressed bytes.

    Raises `UsageError` for a damaged or unreadable file, no text, or one that expands further than `limits`.
    """
    compression = compression_of(path)
    try:
        with path.open("rb") as raw:
            refuse_other_kinds(path, raw.read(512), OWN_START.get(compression))
            raw.seek(0)
            expanded = 0
            for block in _decompressed(path, raw):
                if not expanded and compression:
                    refuse_other_kinds(path, block.data[:512])
                expanded += len(block.data)
                if compression:
                    _refuse_expansion(path, block.position, expanded, limits)
                yield block
            if compression and not raw.tell():
                raise EOFError("it is empty")
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(
            f"{path} is damaged or not a complete {path.suffix} file ({error}): fetch or compress it again."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror or error}): check the path and its rights."
        ) from error


def _refuse_expansion(path: Path, position: int, expanded: int, limits: Limits) -> None:
    if expanded > limits.expanded_bytes:
        raise UsageError(
            f"{path} expands to more than {limits.expanded_bytes:,} bytes: leave it out, or raise "
            "data.max_expanded_bytes."
        )
    if expanded > max(HARMLESS_BYTES, limits.expansion * position):
        raise UsageError(
            f"{path} expands to more than {limits.expansion} times its size ({position:,} bytes gave "
            f"{expanded:,}), as text does not: leave it out, or raise data.max_expansion."
        )


def refuse_other_kinds(path: Path, start: bytes, own: bytes | None = None) -> None:
    """Raise `UsageError` if a file begins as what is known to be no text; `own` is how it should begin."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UsageError(
            f"{path} is a Git LFS pointer, not the file itself: fetch the content with `git lfs pull`."
        )
    if start.startswith(b"/annex/objects/"):
        raise UsageError(
            f"{path} is a git-annex pointer, not the file itself: fetch the content with `git annex get`."
        )
    found = next(
        (kind for magic, kind in OTHER_KINDS.items() if magic != own and start.startswith(magic)), None
    )
    if start[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        raise UsageError(f"{path} holds {found}, not text: unpack or convert it, and name the text files.")


def _decompressed(path: Path, raw: BinaryIO) -> Iterator[Block]:
    suffix = compression_of(path)
    if suffix == ".zst":
        yield from _gathered(_zstandard_blocks(path, raw))
    elif suffix == ".xz":
        yield from _gathered(_xz_blocks(raw))
    else:
        with gzip.GzipFile(fileobj=raw) if suffix else nullcontext(raw) as plain:
            while data := plain.read(BLOCK_BYTES):
                yield Block(data, raw.tell())


def _gathered(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks of at least `BLOCK_BYTES`, but for the last."""
    waiting: list[bytes] = []
    size = position = 0
    for data, position in blocks:
        waiting.append(data)
        size += len(data)
        if size >= BLOCK_BYTES:
            yield Block(b"".join(waiting), position)
            waiting, size = [], 0
    if waiting:
        yield Block(b"".join(waiting), position)


def _xz_blocks(raw: BinaryIO) -> Iterator[Block]:
    """Streams one after another, with their padding. (`lzma.LZMAFile` would take what follows the first one
    for nothing where it is damaged.)
    """
    stored = b""
    stream = None
    while stored or (stored := raw.read(BLOCK_BYTES // 8)):
        if stream is None:
            stored = stored.lstrip(b"\0")
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ) if stored else None
            continue
        yield Block(stream.decompress(stored, BLOCK_BYTES), raw.tell())
        while not stream.eof and not stream.needs_input:
            yield Block(stream.decompress(b"", BLOCK_BYTES), raw.tell())
        stored = stream.unused_data if stream.eof else b""
        stream = None if stream.eof else stream
    if stream is not None:
        raise EOFError("it ends in the middle of a stream")


def _zstandard_blocks(path: Path, raw: BinaryIO) -> Iterator[Block]:
    """Frames one after another. (`stream_reader` would take a truncated file for a whole one.)"""
    try:
        import zstandard
    except ImportError as error:
        raise LowriseError(f"{path} needs the package zstandard: pip install zstandard.") from error
    frame = None
    try:
        while stored := raw.read(ZSTANDARD_BYTES):
            while stored:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
                if data := frame.decompress(stored):
                    yield Block(data, raw.tell())
                stored = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")
