"""Corpora of too few documents to hold out whole ones: the end of the text is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowrise.data import Corpus, DataConfig, prepare

LINES = [f"Line {i} of a play, with words enough to be cut somewhere near here.\n" for i in range(3000)]
TEXT = "".join(LINES)


def prepared(folder: Path, *sources: Path, **more: object) -> Corpus:
    options = {"vocab_size": 300, "cache": str(folder / "cache"), **more}
    return prepare(DataConfig(source=[str(s) for s in sources], **options))  # type: ignore[arg-type]


def splits(corpus: Corpus) -> dict[str, dict]:
    return {name: corpus.index["splits"][name] for name in ("train", "valid")}


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_one_text_file_gives_both_splits(tmp_path: Path, fraction: float) -> None:
    file = tmp_path / "input.txt"
    file.write_text(TEXT)
    corpus = prepared(tmp_path, file, valid_fraction=fraction)
    found = splits(corpus)
    assert found["train"]["text_bytes"] + found["valid"]["text_bytes"] == len(TEXT)
    assert found["valid"]["text_bytes"] == pytest.approx(fraction * len(TEXT), abs=2 * len(LINES[0]))
    assert "the last" in str(corpus)
    assert prepared(tmp_path, file, valid_fraction=fraction).fingerprint == corpus.fingerprint


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_documents_give_both_splits(tmp_path: Path, count: int) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text(
        "".join(json.dumps({"text": TEXT[i * 1000 : (i + 1) * 1000]}) + "\n" for i in range(count))
    )
    corpus = prepared(tmp_path, file)
    found = splits(corpus)
    assert found["train"]["text_bytes"] + found["valid"]["text_bytes"] == 1000 * count
    assert found["valid"]["text_bytes"] > 0


def test_a_few_files_give_both_splits(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(TEXT[: 1000 * (i + 1)])
    corpus = prepared(tmp_path, *sorted(tmp_path.glob("*.txt")), valid_fraction=0.5)
    found = splits(corpus)
    assert found["train"]["text_bytes"] + found["valid"]["text_bytes"] == 6000
    assert 2800 < found["valid"]["text_bytes"] <= 3000


def test_documents_enough_are_drawn_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    corpus = prepared(tmp_path, file)
    assert corpus.held_out_tail == ""
    assert "of the documents" in str(corpus)
