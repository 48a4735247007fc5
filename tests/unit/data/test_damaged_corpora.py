"""A prepared corpus that is not as it was written: always a message, or the right tokens."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrise.cli import main
from lowrise.data import Corpus, DataConfig, inspect, open_corpus, prepare
from lowrise.errors import LowriseError, UsageError
from lowrise.files import sealed

index_module = importlib.import_module("lowrise.data.index")
shards_module = importlib.import_module("lowrise.data.shards")
verified_module = importlib.import_module("lowrise.data.verified")
parts_module = importlib.import_module("lowrise.data.parts")


@pytest.fixture
def make(documents: list[str], tokenizer_path: Path, cache: str, tmp_path: Path) -> Callable[[], Corpus]:
    for name, texts in (("train", documents), ("valid", documents[:3])):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))

    def prepared() -> Corpus:
        source, valid = str(tmp_path / "train.jsonl"), str(tmp_path / "valid.jsonl")
        return prepare(DataConfig(source=source, valid=valid, tokenizer=str(tokenizer_path), cache=cache))

    return prepared


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (index_module, shards_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 256)
    return 256


def content_of(directory: Path) -> tuple[Any, ...]:
    corpus = open_corpus(directory)
    corpus.verify()
    return corpus.train.read(0, corpus.train.tokens).tolist(), corpus.valid.tokens, corpus.info()


def edit(corpus: Corpus, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the index with a right checksum, as a malicious hand would."""
    index = {key: value for key, value in corpus.index.items() if key != "sha256"}
    index = json.loads(json.dumps(index))
    change(index)
    (corpus.directory / "index.json").write_text(json.dumps(sealed(index)))


def test_every_flipped_bit_of_the_index_is_found_or_changes_nothing(make: Callable[[], Corpus]) -> None:
    corpus = make()
    path = corpus.directory / "index.json"
    original, right = path.read_bytes(), content_of(corpus.directory)
    found = 0
    for place in range(len(original)):
        data = bytearray(original)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert content_of(corpus.directory) == right, f"byte {place}"
        except LowriseError as error:
            found += "index.json" in str(error)
    assert found > 0.8 * len(original)  # the rest is white space between values


def test_flipped_tokens_are_found_before_use_and_name_the_block(
    make: Callable[[], Corpus], small_blocks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make()
    paths = [*corpus.train.paths, *corpus.valid.paths]
    assert paths[0].stat().st_size > 3 * small_blocks
    draw = random.Random(1)
    for number in range(60):
        path = paths[number % len(paths)]
        original = path.read_bytes()
        place = draw.randrange(len(original))
        data = bytearray(original)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        complaint = rf"{path.name} has another content than was written, in block {place // small_blocks} "
        with pytest.raises(LowriseError, match=complaint):
            make()
        if number < 3:
            assert main(["data", "info", str(corpus.directory)]) == 0
            assert main(["data", "info", str(corpus.directory), "--verify"]) == 1
            assert f"{path.name} has another content than was written, in block" in capsys.readouterr().err
        path.write_bytes(original)
    assert main(["data", "info", str(corpus.directory), "--verify"]) == 0
    assert "Every block is as it was written." in capsys.readouterr().out


def test_ids_outside_of_the_vocabulary_are_refused_at_read(make: Callable[[], Corpus]) -> None:
    corpus = make()
    path = corpus.directory / "train-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[5] = corpus.tokenizer.vocab_size
    ids.tofile(path)
    stream = open_corpus(corpus.directory).train
    assert len(stream.read(6, 20)) == 14
    with pytest.raises(
        LowriseError, match=r"train-00000\.bin has the token id 320, but the vocabulary ends at"
    ):
        stream.read(0, 20)
    with pytest.raises(LowriseError, match=r"train-00000\.bin"):
        next(stream.windows(16, 2))


def drop(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(index: dict[str, Any]) -> None:
        for key in keys[:-1]:
            index = index[key]
        del index[keys[-1]]

    return change


def put(value: object, *keys: str | int) -> Callable[[dict[str, Any]], object]:
    def change(index: Any) -> None:
        for key in keys[:-1]:
            index = index[key]
        index[keys[-1]] = value

    return change


SHARD = ("splits", "train", "shards", 0)


@pytest.mark.parametrize(
    "change",
    [
        drop("fingerprint"),
        drop("splits", "valid"),
        drop("options", "source"),
        drop("tokenizer", "sha256"),
        put([], "splits"),
        put(None, "tokenizer"),
        put("x", "sources"),
        put([{}], "sources"),
        put("float16", "dtype"),
        put("uint32", "dtype"),
        put("big", "byte_order"),
        put(-1, "splits", "train", "tokens"),
        put(True, "splits", "train", "documents"),
        put(1e300, "splits", "train", "text_bytes"),
        put(7, "splits", "train", "tokens"),
        put({}, *SHARD),
        put("../../secret.bin", *SHARD, "file"),
        put("/etc/passwd", *SHARD, "file"),
        put("valid-00000.bin", *SHARD, "file"),
        put("0" * 63, *SHARD, "sha256"),
        put(2**70, *SHARD, "tokens"),
        put(999, "tokenizer", "separator_id"),
        put(999, "tokenizer", "vocab_size"),
        put([], *SHARD, "blocks"),
        put(1, "new key"),
    ],
)
def test_the_schema_holds_whatever_the_checksum_says(
    change: Callable[[dict[str, Any]], object], make: Callable[[], Corpus]
) -> None:
    corpus = make()
    edit(corpus, change)
    with pytest.raises(LowriseError, match=r"index\.json"):
        open_corpus(corpus.directory)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": NaN}', b"9" * 5_000, None],
    ids=["empty", "object", "list", "null", "not UTF-8", "deep", "NaN", "5,000 digits", "folder"],
)
def test_an_index_that_is_none_is_a_message(
    content: bytes | None, make: Callable[[], Corpus], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make().directory
    path = directory / "index.json"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(LowriseError, match=r"index\.json"):
        make()
    for words in ([], ["--verify"]):
        assert main(["data", "info", str(directory), *words]) in (1, 2)
        assert "index.json" in capsys.readouterr().err


def test_a_corpus_in_the_place_of_another_is_refused(make: Callable[[], Corpus], tmp_path: Path) -> None:
    first = make()
    (tmp_path / "train.jsonl").write_text('{"text": "something else"}\n' * 3)
    second = make()
    shutil.rmtree(second.directory)
    shutil.copytree(first.directory, second.directory)
    with pytest.raises(LowriseError, match=r"index\.json is that of another corpus"):
        make()


def test_links_in_the_place_of_shards_are_refused(make: Callable[[], Corpus], tmp_path: Path) -> None:
    corpus = make()
    path = corpus.directory / "train-00000.bin"
    path.rename(tmp_path / "elsewhere.bin")
    path.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(LowriseError, match=r"train-00000\.bin is a link"):
        open_corpus(corpus.directory)


def test_a_shard_cut_while_it_is_in_use_is_a_message(make: Callable[[], Corpus]) -> None:
    stream = open_corpus(make().directory).train
    stream.paths[0].write_bytes(b"\0\0")
    with pytest.raises(LowriseError, match=r"train-00000\.bin has 2 bytes instead of"):
        stream.read(0, 4)


def test_a_large_corpus_is_verified_once_while_its_files_are_the_same(
    make: Callable[[], Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified_module, "REMEMBER_FROM_BYTES", 1)
    verified: list[int] = []
    verify = Corpus.verify
    monkeypatch.setattr(
        Corpus, "verify", lambda self, *rest: (verified.append(1), verify(self, *rest))[1] and None
    )

    def again() -> int:
        before = len(verified)
        make()
        return len(verified) - before

    assert again() == 1, "after the preparation"
    assert again() == 0
    corpus = open_corpus(make().directory)
    shard, record = corpus.train.paths[0], corpus.directory / "verified.json"
    data = shard.read_bytes()
    shard.write_bytes(data)  # as it was, but another time of change
    assert (again(), again()) == (1, 0)
    text = record.read_bytes()
    other = b"1" if text[-9:-8] == b"0" else b"0"
    for content in (b"", b"[]", text.replace(b'"at"', b'"an"'), text[:-9] + other + text[-8:]):
        record.write_bytes(content)
        assert (again(), again()) == (1, 0)
    now = time.time()
    monkeypatch.setattr(verified_module.time, "time", lambda: now + 8 * 86_400)
    assert (again(), again()) == (1, 0), "a week later"
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(LowriseError, match=r"train-00000\.bin has another content"):
        make()
    with pytest.raises(LowriseError):
        make()


def test_damaged_parts_of_a_killed_preparation_are_made_again(
    make: Callable[[], Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART_BYTES", 300)
    monkeypatch.setattr(parts_module, "BLOCK_CHARS", 100)
    monkeypatch.setattr(importlib.import_module("lowrise.data.pieces"), "PIECE_CHARS", 40)
    corpus = make()
    right = content_of(corpus.directory)
    write_part = parts_module.PartWriter.write_part

    def killed(self: Any, number: int, *rest: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return write_part(self, number, *rest)

    draw = random.Random(2)
    for _ in range(25):
        shutil.rmtree(corpus.directory)
        with monkeypatch.context() as patch:
            patch.setattr(parts_module.PartWriter, "write_part", killed)
            with pytest.raises(KeyboardInterrupt):
                make()
        path = corpus.directory / f"part-0000{draw.randrange(2)}.json"
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        make()
        assert content_of(corpus.directory) == right


def test_a_file_given_for_a_corpus_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "corp.txt").write_text("text")
    with pytest.raises(UsageError, match="no prepared corpus"):
        inspect(tmp_path / "corp.txt")
