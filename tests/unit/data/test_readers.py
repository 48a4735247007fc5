"""Files -> documents: nothing lost, and every complaint names its place."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrise.data import readers, stored
from lowrise.errors import UsageError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def whole(chunks: object) -> list[str]:
    found, parts = [], []
    for chunk in chunks:  # type: ignore[attr-defined]
        parts.append(chunk.text)
        if chunk.ends:
            found.append("".join(parts))
            parts = []
    assert not parts, "a reader must end its last document"
    return found


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
def test_json_lines(
    suffix: str, block: int, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", block * 8 if suffix == ".xz" else block)
    monkeypatch.setattr(stored, "ZSTANDARD_BYTES", block)
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(documents)]
    path = tmp_path / f"a.jsonl{suffix}"
    # A byte order mark, blank lines and a last line without its newline are common and harmless.
    path.write_bytes(COMPRESS[suffix](("\ufeff" + "\n\n".join(lines)).encode()))
    assert whole(readers.read_json_lines(path, "text")) == documents


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("block", [1, 3, 2**20])
def test_text_file_is_one_document(
    suffix: str, block: int, documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", block * 8 if suffix == ".xz" else block)
    monkeypatch.setattr(stored, "ZSTANDARD_BYTES", block)
    path = tmp_path / f"a.txt{suffix}"
    for text in documents:
        path.write_bytes(COMPRESS[suffix](text.encode()))
        assert whole(readers.read_text(path)) == [text]
        path.write_bytes(COMPRESS[suffix](("\ufeff" + text).encode()))
        assert whole(readers.read_text(path)) == [text]


@settings(max_examples=100, deadline=None)
@given(
    text=st.text("ab\né", max_size=40),
    separator=st.text("ab\n", min_size=1, max_size=3),
    block=st.integers(1, 9),
)
def test_document_separator(
    text: str, separator: str, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("split") / "a.txt"
    path.write_bytes(text.encode())
    expected = text.split(separator)
    if expected[-1] == "":
        expected.pop()  # a separator at the end closes a document, it does not open another
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "BLOCK_BYTES", block)
        assert whole(readers.read_text(path, separator)) == expected


def test_zst_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(COMPRESS[".zst"](b"one ") + COMPRESS[".zst"](b"two"))
    assert whole(readers.read_text(path)) == ["one two"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_compression_is_a_sentence(suffix: str, damage: str, tmp_path: Path) -> None:
    data = COMPRESS[suffix](b"text that is long enough to be cut " * 100)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"this was never compressed")
    with pytest.raises(UsageError, match=rf"a\.txt\{suffix} is damaged"):
        whole(readers.read_text(path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "unfinished', r"line 3: not a JSON object"),
        ('{"prompt": "x", "completion": "y"}', "line 3: .* a sample.*data.format = .samples."),
        ('{"messages": []}', "line 3: .* a sample.*data.format = .samples."),
        ('{"body": "x", "id": 1}', r"line 3: no key 'text' \(keys found: 'body', 'id'\).*data\.text_key"),
        ('{"text": null}', r"line 3: 'text' holds null, not a string"),
        ('["text"]', r"line 3: a JSON array"),
        (r'{"text": "\ud800"}', r"line 3: 'text' has half a surrogate pair at character 0"),
    ],
)
def test_broken_json_line_is_a_sentence(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + '\n{"text": "fine"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, " + complaint):
        whole(readers.read_json_lines(path, "text"))


@pytest.mark.parametrize("block", [1, 2, 3, 5, 2**20])
def test_invalid_utf8_is_named_with_its_byte(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK_BYTES", block)
    path = tmp_path / "a.txt"
    path.write_bytes("é€🙂".encode() + b"\xff tail")
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 text at byte 9:"):
        whole(readers.read_text(path))
    path.write_bytes("é€🙂".encode()[:-1])  # an unfinished character at the end of the file
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 text at byte 5:"):
        whole(readers.read_text(path))
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl is not UTF-8 text at byte 25:"):
        whole(readers.read_json_lines(lines, "text"))


def test_parquet(documents: list[str], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"id": range(len(documents)), "text": documents})
    parquet.write_table(table, path, row_group_size=2)
    assert whole(readers.read_parquet(path, "text")) == documents
    with pytest.raises(UsageError, match=r"a\.parquet: no column 'body' \(columns found: 'id', 'text'\)"):
        whole(readers.read_parquet(path, "body"))
    with pytest.raises(UsageError, match=r"a\.parquet, row 1: 'id' holds number"):
        whole(readers.read_parquet(path, "id"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"a\.parquet is damaged"):
        whole(readers.read_parquet(path, "text"))


def test_a_large_text_file_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789abcde\n" * 2**18)  # 4 MiB
    longest = max(len(chunk.text) for chunk in readers.read_text(path, "\n\n\n"))
    assert longest <= stored.BLOCK_BYTES + 2  # a block, and what may be the start of a separator


def test_a_long_line_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding each block to what is there would copy the whole line once a block."""

    class Block(bytes):
        def __add__(self, other: object) -> bytes:
            raise AssertionError("a line is copied once a block")

        __radd__ = __add__

    blocks = [b'{"text": "', *[b"ab"] * 1000, b'"}\n{"text": "c"}']
    monkeypatch.setattr(readers, "read_blocks", lambda path, limits: ((Block(b), 0) for b in blocks))
    lines = [line for _, line, _, _ in readers.read_lines(tmp_path / "a.jsonl")]
    assert [json.loads(line)["text"] for line in lines] == ["ab" * 1000, "c"]
