"""Compressed files that expand without end, endless lines, streams that break off, tokenizers that hang."""

from __future__ import annotations

import gzip
import importlib
import json
import lzma
import random
import time
from pathlib import Path

import pytest
import zstandard

from lowrise.data import DataConfig, Tokenizer, prepare, readers
from lowrise.data.stored import Limits, read_blocks
from lowrise.errors import LowriseError, UsageError

stored_module = importlib.import_module("lowrise.data.stored")
file_module = importlib.import_module("lowrise.data.tokenizer_file")

COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor(level=19).compress}


def bytes_of(path: Path, limits: Limits = stored_module.LIMITS) -> bytes:
    return b"".join(block.data for block in read_blocks(path, limits))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_expansion_has_bounds_that_can_be_raised(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"again and again\n" * 2**15))  # 512 KiB
    assert len(bytes_of(path)) == 2**19, "little text may be as repetitive as it likes"
    with pytest.raises(UsageError, match=r"expands to more than 100,000 bytes.*data\.max_expanded_bytes"):
        bytes_of(path, Limits(expanded_bytes=10**5))
    monkeypatch.setattr(stored_module, "HARMLESS_BYTES", 2**17)
    with pytest.raises(UsageError, match=r"more than 100 times its size .*data\.max_expansion"):
        bytes_of(path, Limits(expansion=100))
    with pytest.raises(UsageError, match=r"a\.txt\..* expands to more than 90 times"):
        prepare(DataConfig(source=str(path), cache=str(tmp_path / "cache"), max_expansion=90))
    config = DataConfig(source=str(path), cache=str(tmp_path / "cache"), vocab_size=260, max_expansion=10**5)
    assert prepare(config).index["options"].keys().isdisjoint({"max_expansion", "max_line_bytes"})


@pytest.mark.parametrize("suffix", COMPRESS)
def test_blocks_are_bounded_however_much_is_compressed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b" " * 2**26))
    sizes = [len(block.data) for block in read_blocks(path, Limits(expansion=10**6))]
    assert sum(sizes) == 2**26
    assert max(sizes) <= 2**26 if suffix == ".zst" else max(sizes) <= 2**21


@pytest.mark.parametrize("suffix", COMPRESS)
def test_streams_one_after_another_are_read_to_the_end(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    texts = [f"text {n}\n".encode() * n for n in (1, 50, 5_000)]
    path.write_bytes(b"".join(map(COMPRESS[suffix], texts)))
    assert bytes_of(path) == b"".join(texts)
    for left in (1, 9, 40):
        path.write_bytes(b"".join(map(COMPRESS[suffix], texts))[:-left])
        with pytest.raises(UsageError, match="damaged or not a complete"):
            bytes_of(path)
    path.write_bytes(COMPRESS[suffix](texts[1]) + b"no stream at all, but text")
    with pytest.raises(UsageError, match="damaged or not a complete"):
        bytes_of(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="it is empty"):
        bytes_of(path)


def test_padding_of_xz_streams_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert bytes_of(path) == b"onetwo"


def test_lines_have_a_bound_that_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n' + json.dumps({"text": "long " * 2_000}) + "\n")
    for block in (64, 2**20):
        monkeypatch.setattr(stored_module, "BLOCK_BYTES", block)
        with pytest.raises(
            UsageError, match=r"a\.jsonl, line 2: longer than 5,000 bytes.*data\.max_line_bytes"
        ):
            list(readers.read_json_lines(path, "text", Limits(line_bytes=5_000)))
    assert len(list(readers.read_json_lines(path, "text"))) == 2
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": ["short", "long " * 2_000]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet, row 2: longer than 5,000 bytes"):
        list(readers.read_parquet(tmp_path / "a.parquet", "text", Limits(line_bytes=5_000)))


@pytest.mark.parametrize("key", ["max_line_bytes", "max_expansion", "max_expanded_bytes"])
def test_bounds_that_cannot_be_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=rf"data\.{key} is 0"):
        DataConfig(**{key: 0})


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import time; time.sleep(60)", "does not load within 1 seconds"),
        ("import os; os.kill(os.getpid(), 11)", "ends the process by signal 11"),
    ],
)
def test_a_tokenizer_that_hangs_or_kills_the_library_is_a_message_within_seconds(
    code: str, complaint: str, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "_TRIAL", code)
    monkeypatch.setattr(file_module, "TRIAL_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(UsageError, match=complaint):
        Tokenizer.load(tokenizer_path)
    assert time.monotonic() - started < 30


def test_a_known_tokenizer_is_not_tried_again(
    tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    config = DataConfig(
        source=str(tmp_path / "a.txt"), tokenizer=str(tokenizer_path), cache=str(tmp_path / "cache")
    )
    prepare(config)
    monkeypatch.setattr(file_module, "_TRIAL", "import sys; sys.exit(3)")
    prepare(config)
    with pytest.raises(UsageError, match="not a tokenizer"):
        Tokenizer.load(tokenizer_path)


def test_damaged_tokenizers_are_messages(tokenizer_path: Path, tmp_path: Path) -> None:
    original = tokenizer_path.read_bytes()
    draw = random.Random(5)
    path = tmp_path / "tokenizer.json"
    for _ in range(40):
        data = bytearray(original)
        place = draw.randrange(len(data))
        if draw.random() < 0.5:
            data[place] ^= 1 << draw.randrange(8)
        else:
            del data[place : place + draw.randrange(1, 40)]
        path.write_bytes(data)
        try:
            Tokenizer.load(path).encode("the quick fox")
        except UsageError as error:
            assert "tokenizer.json" in str(error)  # noqa: PT017  (either way is right)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}}, "an id that cannot be"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "an id that cannot be"),
        ({"model": {"type": "BPE", "vocab": 7, "merges": []}}, "has no vocabulary"),
        ({"model": None}, "not an object with a model"),
        ({"added_tokens": {}}, "not a tokenizer"),
        ({"added_tokens": [{"id": 1}]}, "an added token has no id or content"),
    ],
)
def test_the_structure_is_looked_at_first(
    change: dict[str, object], complaint: str, tokenizer_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer_path.read_text()) | change))
    with pytest.raises(UsageError, match=complaint):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000, b"version https://git-lfs.github.com/spec/v1\n", None],
    ids=["empty", "not UTF-8", "deep", "5,000 digits", "pointer", "folder"],
)
def test_what_is_no_tokenizer_at_all_is_a_message(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_a_trained_tokenizer_that_was_edited_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the fox and the dog\n" * 50)
    config = DataConfig(source=str(tmp_path / "a.txt"), vocab_size=270, cache=str(tmp_path / "cache"))
    right = prepare(config).fingerprint
    (path,) = (tmp_path / "cache" / "tokenizers").glob("*.json")
    original = path.read_bytes()
    for content in (original.replace(b"<|pad|>", b"<|fad|>"), original[:-3], b"", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(LowriseError, match="is not the tokenizer that was trained: delete it"):
            prepare(config)
    path.unlink()
    assert prepare(config).fingerprint == right
