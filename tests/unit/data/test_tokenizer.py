"""Text is text: the tokenizer adds nothing, finds nothing, loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors

from lowrise.data import Tokenizer, train_bpe
from lowrise.data.pieces import Cut
from lowrise.errors import UsageError

TRAINED = train_bpe(["the theme of the thesis is that these themes are there " * 5], 270)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_every_text_decodes_to_itself(text: str) -> None:
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert TRAINED.separator_id not in ids


def test_special_tokens_in_a_text_are_ordinary_text() -> None:
    ids = TRAINED.encode("a<|endoftext|>b<|pad|>")
    assert not {0, 1} & set(ids)
    assert TRAINED.decode(ids) == "a<|endoftext|>b<|pad|>"


def test_trained_tokenizer_is_as_documented(documents: list[str]) -> None:
    assert TRAINED.separator_id == 0
    assert TRAINED.separator_token == "<|endoftext|>"
    assert TRAINED.decode([1]) == "<|pad|>"
    assert TRAINED.vocab_size == 270
    # Pairs seen once are not merged, so the text decides how many entries there are at most.
    assert train_bpe(["ab"], 4096).vocab_size == 258
    assert train_bpe(documents, 400).sha256 == train_bpe(documents, 400).sha256


def test_write_is_byte_for_byte(tokenizer_path: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.load(tokenizer_path)
    loaded.write(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == tokenizer_path.read_bytes()
    assert Tokenizer.load(tmp_path / "copy.json").sha256 == loaded.sha256
    assert Tokenizer.load(tokenizer_path.parent).sha256 == loaded.sha256  # a directory that holds one


def test_settings_inside_the_file_do_not_change_the_text(tokenizer_path: Path, tmp_path: Path) -> None:
    plain = Tokenizer.load(tokenizer_path)
    meddling = Library.from_file(str(tokenizer_path))
    meddling.enable_truncation(max_length=3)
    meddling.enable_padding(length=16, pad_id=1, pad_token="<|pad|>")
    meddling.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    meddling.save(str(tmp_path / "tokenizer.json"))
    texts = ["a long enough text to be cut", "short"]
    assert Tokenizer.load(tmp_path).encode_batch(texts) == plain.encode_batch(texts)


def test_other_separators_and_ids_with_gaps(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 70_000}
    library = Library(models.WordLevel(vocabulary, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.separator_token, tokenizer.separator_id) == ("</s>", 2)
    assert tokenizer.vocab_size == 70_001  # the embedding needs a row for the largest id
    assert Tokenizer.load(tmp_path, separator_token="<s>").separator_id == 1
    with pytest.raises(UsageError, match=r"no token <eot> .*separator_token"):
        Tokenizer.load(tmp_path, separator_token="<eot>")


def test_no_known_separator_is_a_sentence(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    library.add_special_tokens(["<odd>"])
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"separator_token.*<odd>"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "not json", json.dumps({"model": {"type": "BPE"}})])
def test_a_file_that_is_no_tokenizer_is_a_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"broken\.json is not a tokenizer"):
        Tokenizer.load(path)
    with pytest.raises(UsageError, match=r"no tokenizer at .*missing\.json"):
        Tokenizer.load(tmp_path / "missing.json")


def test_pieces_join_for_byte_level_but_not_for_a_tokenizer_that_marks_the_start(tmp_path: Path) -> None:
    assert TRAINED.cut is Cut.LINE
    library = Library(models.BPE({"▁": 0, "</s>": 1, "a": 2}, []))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).cut is not Cut.LINE
