"""One source file -> its documents, in bounded memory.

A document may be larger than memory, so readers yield `Chunk`s: pieces of text of any size, the last of a
document marked. Bytes become text here and nowhere else: UTF-8, strictly, without newline translation; a byte
order mark at the start of a file is not text. Every complaint names the file and the place in it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lowrise.errors import LowriseError, UsageError

BLOCK_BYTES = 2**20
COMPRESSIONS = (".gz", ".xz", ".zst")
JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson", ".json")
LARGEST_WINDOW = 2**31  # of zstandard: what `zstd --long=31` writes; memory is taken as the frames ask for it


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
}

OWN_START = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}


class Chunk(NamedTuple):
    """A piece of a document: its text, whether it ends the document, and how far the file has been read."""

    text: str
    ends: bool
    position: int  # of the file's stored (compressed) bytes, for progress


class Block(NamedTuple):
    """Decompressed bytes, and how many stored bytes have been read so far."""

    data: bytes
    position: int


def compression_of(path: Path) -> str:
    """ ".gz", ".xz" or ".zst" by the file's name, whatever its case; "" for none."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def read_blocks(path: Path) -> Iterator[Block]:
    """The file's decompressed bytes. Raises `UsageError` for a damaged or unreadable file, or no text."""
    try:
        with path.open("rb") as raw:
            _refuse_other_kinds(path, raw.read(512), OWN_START.get(compression_of(path)))
            raw.seek(0)
            first = True
            for block in _decompressed(path, raw):
                if first and compression_of(path):
                    _refuse_other_kinds(path, block.data[:512])
                first = False
                yield block
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(
            f"{path} is damaged or not a complete {path.suffix} file ({error}): fetch or compress it again."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror or error}): check the path and its rights."
        ) from error


def _refuse_other_kinds(path: Path, start: bytes, own: bytes | None = None) -> None:
    """Raise `UsageError` if a file begins as what is known to be no text; `own` is how it should begin."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UsageError(
            f"{path} is a Git LFS pointer, not the file itself: fetch the content with `git lfs pull`."
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
        yield from _zstandard_blocks(path, raw)
        return
    openers: dict[str, Callable[[BinaryIO], Any]] = {
        ".gz": lambda file: gzip.GzipFile(fileobj=file),
        ".xz": lzma.LZMAFile,
    }
    with openers.get(suffix, nullcontext)(raw) as plain:
        while data := plain.read(BLOCK_BYTES):
            yield Block(data, raw.tell())


def _zstandard_blocks(path: Path, raw: BinaryIO) -> Iterator[Block]:
    """Frames one after another. (`stream_reader` would take a truncated file for a whole one.)"""
    try:
        import zstandard
    except ImportError as error:
        raise LowriseError(f"{path} needs the package zstandard: pip install zstandard.") from error
    frame = None
    try:
        while stored := raw.read(BLOCK_BYTES // 8):
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


def read_text(path: Path, separator: str | None = None) -> Iterator[Chunk]:
    """Plain text: the file is one document, or, with a separator, what lies between separators.

    A separator at the very end closes the last document; it does not open an empty one.
    """
    buffer, position = "", 0
    keep = len(separator) - 1 if separator else 0  # characters that may be the start of a separator
    started = separator is None  # whether the current document exists, even if it stays empty
    for text, position in _decoded(path):
        buffer += text
        if separator:
            *whole, buffer = buffer.split(separator)
            for document in whole:
                yield Chunk(document, True, position)
                started = False
        cut = len(buffer) - keep
        if cut > 0:
            yield Chunk(buffer[:cut], False, position)
            buffer, started = buffer[cut:], True
    if started or buffer:
        yield Chunk(buffer, True, position)


def _decoded(path: Path) -> Iterator[tuple[str, int]]:
    """The file's text in blocks, without its byte order mark, and the stored bytes read so far."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    fed = 0
    position = 0
    # The empty block at the end makes the decoder complain of an unfinished character.
    for data, position in chain(read_blocks(path), [Block(b"", -1)]):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=position < 0)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, fed - waiting + error.start) from error
        if fed == waiting:
            text = text.removeprefix("\ufeff")
        if (zero := data.find(b"\0")) >= 0:
            raise UsageError(
                f"{path} has a zero byte at {fed + zero}, which text does not have: it is another kind of "
                "file, or damaged. Convert it, or leave it out of the source."
            )
        fed += len(data)
        if text:
            yield text, position


def _not_utf8(path: Path, offset: int) -> UsageError:
    where = "decompressed byte" if compression_of(path) else "byte"
    return UsageError(
        f"{path} is not UTF-8 text at {where} {offset}: convert it (iconv -t utf-8), or leave it out of the "
        "source (a glob such as 'DIR/**/*.txt' takes text files only)."
    )


def read_lines(path: Path) -> Iterator[tuple[int, bytes, int, int]]:
    """Lines as (number from 1, bytes without the newline, offset of the line, stored bytes read)."""
    number, offset, position = 0, 0, 0
    rest: list[bytes] = []  # joined once a line: adding bytes would copy a long line once a block
    for data, position in read_blocks(path):
        if b"\n" not in data:
            rest.append(data)
            continue
        *lines, tail = data.split(b"\n")
        lines[0] = b"".join([*rest, lines[0]])
        rest = [tail]
        for line in lines:
            number += 1
            yield number, line, offset, position
            offset += len(line) + 1
    if last := b"".join(rest):
        yield number + 1, last, offset, position


def read_json_lines(path: Path, text_key: str) -> Iterator[Chunk]:
    """JSON Lines: one object a line, its `text_key` the document. Lines of white space are no documents."""
    for number, line, offset, position in read_lines(path):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start) from error
        if number == 1:
            text = text.removeprefix("\ufeff")
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
            raise UsageError(
                f"{path}, line {number}: not a JSON object ({error}). Each line must be one whole object "
                f'such as {{"{text_key}": "..."}}: repair or remove the line.'
            ) from error
        yield Chunk(_field(row, text_key, f"{path}, line {number}"), True, position)


def _field(row: Any, text_key: str, place: str) -> str:
    """The document in a row, or a sentence about what is there instead."""
    if not isinstance(row, dict):
        kind = "array (list)" if isinstance(row, list) else type(row).__name__
        raise UsageError(
            f"{place}: a JSON {kind}, not an object with the key {text_key!r}. One object a line is read; a "
            "file that is one array becomes that with `jq -c '.[]'`."
        )
    if text_key not in row:
        keys = ", ".join(map(repr, row)) or "none"
        raise UsageError(
            f"{place}: no key {text_key!r} (keys found: {keys}). Set data.text_key to the one with the text."
        )
    text = row[text_key]
    if not isinstance(text, str):
        raise UsageError(
            f"{place}: {text_key!r} holds a {type(text).__name__}, not a string: repair or remove it, or set "
            "data.text_key to the key with the text."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place}: {text_key!r} has half a surrogate pair at character {error.start}, which is no text: "
            "repair or remove it."
        ) from error
    return text


def read_parquet(path: Path, text_key: str) -> Iterator[Chunk]:
    """Parquet, a few rows at a time; only the text column is read."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise LowriseError(f"{path} needs the package pyarrow: pip install 'lowrise[parquet]'.") from error
    size = path.stat().st_size
    number = 0
    try:
        with path.open("rb") as raw:
            _refuse_other_kinds(path, raw.read(512), b"PAR1")
        with pyarrow.parquet.ParquetFile(path) as table:
            _require_column(table.schema_arrow.names, text_key, str(path))
            total = max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=256, columns=[text_key]):
                for row in batch.to_pylist():
                    number += 1
                    yield Chunk(_field(row, text_key, f"{path}, row {number}"), True, size * number // total)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}, within 256 rows after row {number}: {text_key!r} is not UTF-8 text ({error}): "
            "repair the rows."
        ) from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged or not a Parquet file ({error}): fetch it again.") from error


def _require_column(columns: list[str], text_key: str, place: str) -> None:
    if text_key not in columns:
        found = ", ".join(map(repr, columns)) or "none"
        raise UsageError(
            f"{place}: no column {text_key!r} (columns found: {found}). Set data.text_key to the one with "
            "the text."
        )


def read_dataset(dataset: Any, name: str, size: int, text_key: str) -> Iterator[Chunk]:
    """Rows of a Hugging Face `datasets.Dataset`, whose Arrow files stay on disk."""
    _require_column(dataset.column_names, text_key, name)
    total = max(dataset.num_rows, 1)
    number = 0
    for batch in dataset.with_format(None).select_columns([text_key]).iter(batch_size=256):
        for text in batch[text_key]:
            number += 1
            yield Chunk(
                _field({text_key: text}, text_key, f"{name}, row {number}"), True, size * number // total
            )
