"""One source file -> its documents, in bounded memory.

A document may be larger than memory, so readers yield `Chunk`s: pieces of text of any size, the last of a
document marked. Bytes become text here and nowhere else: UTF-8, strictly, without newline translation; a byte
order mark at the start of a file is not text. Every complaint names the file and the place in it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lowrise.data.stored import LIMITS, Block, Limits, compression_of, read_blocks, refuse_other_kinds
from lowrise.errors import LowriseError, UsageError

JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson", ".json")


class Span(NamedTuple):
    """Part of a sample for fine-tuning (`lowrise.data.samples`)."""

    text: str
    counts: bool  # in the loss
    marked: bool  # special tokens in it are marks
    text_bytes: int  # of the completion in it, as UTF-8


class Chunk(NamedTuple):
    """A piece of a document: its text, whether it ends the document, and how far the file has been read."""

    text: str
    ends: bool
    position: int  # of the file's stored (compressed) bytes, for progress
    spans: tuple[Span, ...] = ()  # of a sample, which is one chunk


def read_text(path: Path, separator: str | None = None, limits: Limits = LIMITS) -> Iterator[Chunk]:
    """Plain text: the file is one document, or, with a separator, what lies between separators.

    A separator at the very end closes the last document; it does not open an empty one.
    """
    buffer, position = "", 0
    keep = len(separator) - 1 if separator else 0  # characters that may be the start of a separator
    started = separator is None  # whether the current document exists, even if it stays empty
    for text, position in _decoded(path, limits):
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


def refuse_json_lines(path: Path, text_key: str, limits: Limits = LIMITS) -> None:
    """Raise `UsageError` for a text file that begins as JSON Lines with this key do (`part-00000`,
    `a.jsonl.1`): its braces and keys would be trained on as text.
    """
    first, _ = next(_decoded(path, limits), ("", 0))
    line, _, _ = first.lstrip().partition("\n")
    if not line.startswith("{"):
        return
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict) and isinstance(found.get(text_key), str):
        raise UsageError(
            f"{path} begins with a JSON object whose {text_key!r} is a string, as JSON Lines do, and "
            "its name does not: let it end in .jsonl (before .gz, .xz or .zst), or convert it to text."
        )


def _decoded(path: Path, limits: Limits) -> Iterator[tuple[str, int]]:
    """The file's text in blocks, without its byte order mark, and the stored bytes read so far."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    fed = 0
    position = 0
    # The empty block at the end makes the decoder complain of an unfinished character.
    for data, position in chain(read_blocks(path, limits), [Block(b"", -1)]):
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


def holds(path: Path, wanted: list[str], limits: Limits = LIMITS) -> list[bool]:
    """Which of these strings a text file has; reads until the first of them is found."""
    overlap = max(map(len, wanted)) - 1
    found = [False] * len(wanted)
    end = ""
    for text, _ in _decoded(path, limits):
        window = end + text
        found = [known or string in window for known, string in zip(found, wanted, strict=True)]
        if found[0]:
            break
        end = window[max(0, len(window) - overlap) :]
    return found


def _not_utf8(path: Path, offset: int) -> UsageError:
    where = "decompressed byte" if compression_of(path) else "byte"
    return UsageError(
        f"{path} is not UTF-8 text at {where} {offset}: convert it (iconv -t utf-8), or leave it out of the "
        "source (a glob such as 'DIR/**/*.txt' takes text files only)."
    )


def read_lines(path: Path, limits: Limits = LIMITS) -> Iterator[tuple[int, bytes, int, int]]:
    """Lines as (number from 1, bytes without the newline, offset of the line, stored bytes read).

    Raises `UsageError` for a line longer than `limits`.
    """
    number, offset, position = 0, 0, 0
    rest: list[bytes] = []  # joined once a line: adding bytes would copy a long line once a block
    waiting = 0
    for data, position in read_blocks(path, limits):
        if b"\n" not in data:
            rest.append(data)
            waiting += len(data)
            _refuse_length(waiting, limits, f"{path}, line {number + 1}")
            continue
        *lines, tail = data.split(b"\n")
        lines[0] = b"".join([*rest, lines[0]])
        rest, waiting = [tail], len(tail)
        for line in lines:
            number += 1
            _refuse_length(len(line), limits, f"{path}, line {number}")
            yield number, line, offset, position
            offset += len(line) + 1
    if last := b"".join(rest):
        yield number + 1, last, offset, position


def _refuse_length(size: int, limits: Limits, place: str) -> None:
    if size > limits.line_bytes:
        raise UsageError(
            f"{place}: longer than {limits.line_bytes:,} bytes: split or remove it, or raise "
            "data.max_line_bytes."
        )


def read_json_lines(path: Path, text_key: str, limits: Limits = LIMITS) -> Iterator[Chunk]:
    """JSON Lines: one object a line, its `text_key` the document. Lines of white space are no documents."""
    for number, row, position in json_rows(path, limits, example={text_key: "..."}):
        yield Chunk(_field(row, text_key, f"{path}, line {number}", limits), True, position)


def json_rows(
    path: Path, limits: Limits, *, example: Mapping[str, str], all_keys_once: bool = False
) -> Iterator[tuple[int, Any, int]]:
    """The values of JSON Lines as (number of the line from 1, value, stored bytes read). Lines of white space
    are none. A key of `example`, which messages show, must not stand twice; with `all_keys_once` no key.
    """
    for number, line, offset, position in read_lines(path, limits):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start) from error
        if number == 1:
            text = text.removeprefix("\ufeff")
        if not text.strip():
            continue
        try:
            # Only a line that quotes the key more often than once may have it twice, so most are read fast.
            twice = all_keys_once or any(text.count(json.dumps(key)) > 1 for key in example)
            row = json.loads(text, object_pairs_hook=_without_doubles if twice else None)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
            raise UsageError(
                f"{path}, line {number}: not a JSON object ({error}). Each line must be one whole object "
                f"such as {json.dumps(dict(example), ensure_ascii=False)}: repair or remove the line."
            ) from error
        yield number, row, position


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("it has a key twice, of which JSON readers take one or the other")
    return row


def kind_of_json(value: Any) -> str:
    """What JSON calls a value."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array (list)", str: "string", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _field(row: Any, text_key: str, place: str, limits: Limits) -> str:
    """The document in a row, or a sentence about what is there instead."""
    if not isinstance(row, dict):
        raise UsageError(
            f"{place}: a JSON {kind_of_json(row)}, not an object with the key {text_key!r}. One object a "
            "line is read; a file that is one array becomes that with `jq -c '.[]'`."
        )
    if text_key not in row:
        keys = ", ".join(map(repr, row)) or "none"
        remedy = "Set data.text_key to the one with the text."
        if {"prompt", "completion"} <= row.keys() or "messages" in row:
            remedy = 'This is a sample for fine-tuning, which data.format = "samples" reads.'
        raise UsageError(f"{place}: no key {text_key!r} (keys found: {keys}). {remedy}")
    text = row[text_key]
    if not isinstance(text, str):
        raise UsageError(
            f"{place}: {text_key!r} holds {kind_of_json(text)}, not a string: repair or remove it, or set "
            "data.text_key to the key with the text."
        )
    refuse_half_pairs(text, text_key, place)
    _refuse_length(len(text.encode()), limits, place)
    return text


def refuse_half_pairs(text: str, key: str, place: str) -> None:
    """JSON can write half a surrogate pair, which UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place}: {key!r} has half a surrogate pair at character {error.start}, which is no text: "
            "repair or remove it."
        ) from error


def read_parquet(path: Path, text_key: str, limits: Limits = LIMITS) -> Iterator[Chunk]:
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
            refuse_other_kinds(path, raw.read(512), b"PAR1")
        with pyarrow.parquet.ParquetFile(path) as table:
            _require_column(table.schema_arrow.names, text_key, str(path))
            total = max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=256, columns=[text_key]):
                for row in batch.to_pylist():
                    number += 1
                    text = _field(row, text_key, f"{path}, row {number}", limits)
                    yield Chunk(text, True, size * number // total)
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
    if columns.count(text_key) > 1:
        raise UsageError(f"{place}: {columns.count(text_key)} columns are named {text_key!r}: rename them.")


def read_dataset(
    dataset: Any, name: str, size: int, text_key: str, limits: Limits = LIMITS
) -> Iterator[Chunk]:
    """Rows of a Hugging Face `datasets.Dataset`, whose Arrow files stay on disk."""
    _require_column(dataset.column_names, text_key, name)
    total = max(dataset.num_rows, 1)
    number = 0
    for batch in dataset.with_format(None).select_columns([text_key]).iter(batch_size=256):
        for text in batch[text_key]:
            number += 1
            text = _field({text_key: text}, text_key, f"{name}, row {number}", limits)
            yield Chunk(text, True, size * number // total)
