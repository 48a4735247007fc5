"""Text that would be lost, cut or misread without a word: what readers and a preparation say to it."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowrise.data import Corpus, DataConfig, prepare, readers
from lowrise.errors import LowriseError, UsageError

parts_module = importlib.import_module("lowrise.data.parts")
hashes_module = importlib.import_module("lowrise.data.hashes")


@pytest.fixture
def make(tmp_path: Path, tokenizer_path: Path) -> Callable[..., Corpus]:
    (tmp_path / "valid.txt").write_text("held out")

    def prepared(source: Path | str, **changes: object) -> Corpus:
        values = {
            "valid": str(tmp_path / "valid.txt"),
            "tokenizer": str(tokenizer_path),
            "cache": str(tmp_path / "cache"),
        }
        return prepare(DataConfig(source=str(source), **{**values, **changes}))  # type: ignore[arg-type]

    return prepared


def documents_of(corpus: Corpus) -> list[str]:
    ids = corpus.train.read(0, corpus.train.tokens).tolist()
    ends = [i for i, token in enumerate(ids) if token == corpus.tokenizer.separator_id]
    starts = [0, *(end + 1 for end in ends)]
    return [corpus.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=False)]


@pytest.mark.parametrize(
    ("content", "separator", "right"),
    [
        (b"one\r\n\r\ntwo\r\n\r\nthree", "\n\n", r"'\\r\\n\\r\\n'"),
        (b"one\n\ntwo\n\nthree", "\r\n\r\n", r"'\\n\\n'"),
        (b"one\n\ntwo\n\nthree", "\\n\\n", r"'\\n\\n'"),
        (b"one\r\n\r\ntwo", "\\n\\n", r"'\\r\\n\\r\\n'"),
        (b"one\ttwo", "\\t", r"'\\t'"),
    ],
)
def test_a_separator_that_is_written_otherwise_in_the_text_is_refused(
    content: bytes, separator: str, right: str, make: Callable[..., Corpus], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\.txt has no .* but {right}: give that one"):
        make(tmp_path / "a.txt", document_separator=separator)


def test_one_file_with_windows_line_ends_among_others_is_named(
    make: Callable[..., Corpus], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(b"one\n\ntwo")
    (tmp_path / "in" / "b.txt").write_bytes(b"three\r\n\r\nfour")
    with pytest.raises(UsageError, match=r"b\.txt has no '\\n\\n'"):
        make(tmp_path / "in", document_separator="\n\n")


def test_a_separator_that_occurs_nowhere_is_said(make: Callable[..., Corpus], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one two three")
    with pytest.warns(
        UserWarning, match=r"'<END>' occurs nowhere in the text: each of the 2 text files is one"
    ):
        make(tmp_path / "a.txt", document_separator="<END>")


def test_a_separator_that_is_a_backslash_and_a_letter_may_be_meant(
    make: Callable[..., Corpus], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\\ntwo\nthree")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = make(tmp_path / "a.txt", document_separator="\\n")
    assert documents_of(corpus) == ["one", "two\nthree"]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_a_separator_across_blocks_is_found(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("lowrise.data.stored"), "BLOCK_BYTES", block)
    (tmp_path / "a.txt").write_text("aé<END>b")
    assert readers.holds(tmp_path / "a.txt", ["<END>", "b"])[0]
    assert readers.holds(tmp_path / "a.txt", ["nowhere", "é<", "x"]) == [False, True, False]


@pytest.mark.parametrize(
    "line",
    ['{"text": "a", "text": "b"}', '{"te\\u0078t": "a", "id": {"text": 1, "text": 2}, "text": "b"}'],
)
def test_a_key_that_stands_twice_in_a_line_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(UsageError, match=r"a\.jsonl, line 1: .* a key twice"):
        list(readers.read_json_lines(tmp_path / "a.jsonl", "text"))


def test_a_number_of_too_many_digits_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"id": ' + "7" * 5000 + ', "text": "two"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2: not a JSON object") as error:
        list(readers.read_json_lines(tmp_path / "a.jsonl", "text"))
    assert len(str(error.value)) < 500, "the number itself is not shown"


def test_a_text_may_quote_its_key(tmp_path: Path) -> None:
    row = {"id": {"text": "other"}, "text": 'a "text" that quotes "text"'}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert [c.text for c in readers.read_json_lines(tmp_path / "a.jsonl", "text")] == [row["text"]]


def parquet_of(tmp_path: Path, column: object, name: str = "text") -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    table = column if isinstance(column, pyarrow.Table) else pyarrow.table({name: column})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_kind_of_string_column_is_read(kind: str, tmp_path: Path, documents: list[str]) -> None:
    oldest = "16" if kind == "string_view" else None
    pyarrow = pytest.importorskip("pyarrow", minversion=oldest, reason="earlier ones have no string_view")
    array = pyarrow.array(documents)
    column = array.dictionary_encode() if kind == "dictionary" else array.cast(getattr(pyarrow, kind)())
    path = parquet_of(tmp_path, column)
    assert [chunk.text for chunk in readers.read_parquet(path, "text")] == documents


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (["a", None, "b"], "row 2: 'text' holds null, not a string"),
        ([None, None], "row 1: 'text' holds null, not a string"),
        ([["a"], ["b"]], r"row 1: 'text' holds array \(list\), not a string"),
        ([{"text": "a"}], "row 1: 'text' holds object, not a string"),
        ([b"a"], "row 1: 'text' holds bytes, not a string"),
        ([True], "row 1: 'text' holds boolean, not a string"),
        ([1.5], "row 1: 'text' holds number, not a string"),
    ],
)
def test_other_columns_are_named_by_row_and_kind(
    column: list[object], complaint: str, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match=rf"a\.parquet, {complaint}"):
        list(readers.read_parquet(parquet_of(tmp_path, pyarrow.array(column)), "text"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    arrays = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    path = parquet_of(tmp_path, pyarrow.Table.from_arrays(arrays, names=["text", "text"]))
    with pytest.raises(UsageError, match=r"2 columns are named 'text'"):
        list(readers.read_parquet(path, "text"))


def test_a_source_that_changes_while_it_is_read_is_refused(
    make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    write_part = parts_module.PartWriter.write_part

    def meanwhile(self: object, number: int, *rest: Any) -> object:
        path.write_text('{"text": "another"}\n')
        return write_part(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(parts_module.PartWriter, "write_part", meanwhile)
        with pytest.raises(LowriseError, match=r"a\.jsonl was changed while it was being read"):
            make(path)
    assert documents_of(make(path)) == ["another"]
    path.write_text('{"text": "one"}\n')
    assert documents_of(make(path)) == ["one"], "and not what was read of the changed file"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"files": 7}', b"[" * 100_000, b"\xff"])
def test_a_damaged_cache_of_hashes_is_made_again(
    content: bytes, make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes_module, "REMEMBER_HASH_FROM_BYTES", 1)
    (tmp_path / "a.txt").write_text("some text")
    first = make(tmp_path / "a.txt").fingerprint
    (tmp_path / "cache" / "hashes.json").write_bytes(content)
    assert make(tmp_path / "a.txt").fingerprint == first


def test_a_file_replaced_with_its_old_date_and_size_is_read_again(
    make: Callable[..., Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `rsync -t`, `cp -p` and archives replace them."""
    monkeypatch.setattr(hashes_module, "REMEMBER_HASH_FROM_BYTES", 1)
    path = tmp_path / "a.txt"
    path.write_text("text one")
    assert documents_of(make(path)) == ["text one"]
    stat = path.stat()
    path.write_text("text two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert documents_of(make(path)) == ["text two"]
