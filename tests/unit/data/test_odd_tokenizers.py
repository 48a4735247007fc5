"""Tokenizers that lose text, find separators in it, or cannot encode it: none goes without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers as t

from lowrise.data import DataConfig, Tokenizer, prepare, train_bpe
from lowrise.errors import UsageError

TEXT = ["the fox jumps over the dog"] * 9


def unigram() -> t.Tokenizer:
    made = t.Tokenizer(t.models.Unigram())
    made.pre_tokenizer = t.pre_tokenizers.Metaspace()
    made.decoder = t.decoders.Metaspace()
    special = ["<unk>", "</s>"]
    made.train_from_iterator(
        TEXT, t.trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    )
    return made


def bpe(unk: str | None) -> t.Tokenizer:
    made = t.Tokenizer(t.models.BPE(unk_token=unk))
    made.pre_tokenizer = t.pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXT, t.trainers.BpeTrainer(special_tokens=["</s>", *([unk] if unk else [])]))
    return made


def word_level(unk: str = "[UNK]") -> t.Tokenizer:
    words = ["the", "fox", "</s>", "<", ">", "/", "s", unk]
    made = t.Tokenizer(t.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=unk))
    made.pre_tokenizer = t.pre_tokenizers.WhitespaceSplit()
    return made


@pytest.mark.parametrize("make", [unigram, word_level, lambda: bpe("<unk>")])
def test_a_quoted_separator_ends_no_document(make) -> None:
    ours = Tokenizer(make().to_str())
    ids = ours.encode("the fox </s> the")
    assert ours.separator_id not in ids
    assert len(ids) > 3


def test_other_special_tokens_that_a_text_quotes_are_text_too() -> None:
    made = t.Tokenizer(t.models.Unigram())
    made.pre_tokenizer = t.pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    made.train_from_iterator(
        [*TEXT, "a < b > c / s pad"] * 3,
        t.trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    ours = Tokenizer(made.to_str())
    specials = {made.token_to_id(token) for token in special[1:]}
    for text in ("<s>", "a<s>b", "the </s> fox <pad> dog", "<pad>"):
        ids = ours.encode(text)
        assert specials.isdisjoint(ids), text
        assert ours.unknown_id not in ids, text
        assert ours.decode(ids).replace("▁", " ").replace(" ", "") == text.replace(" ", "")
    assert ours.reads_text_by()[-1] == sorted(specials - {ours.separator_id})


def test_byte_level_texts_are_read_by_nothing_but_the_file() -> None:
    assert train_bpe(TEXT, 300).reads_text_by() == []


def prepared(folder: Path, made: t.Tokenizer, text: str):
    (folder / "tokenizer.json").write_text(made.to_str())
    (folder / "a.txt").write_text(text)
    (folder / "v.txt").write_text("the dog")
    options = {"tokenizer": str(folder / "tokenizer.json"), "cache": str(folder / "cache")}
    return prepare(DataConfig(source=[str(folder / "a.txt")], valid=[str(folder / "v.txt")], **options))


def test_a_tokenizer_that_drops_characters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loses .*no entry for what it does not know"):
        prepared(tmp_path, bpe(None), "the fox 你好 dog")


def test_a_tokenizer_with_an_unknown_entry_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"loses .* characters"):
        prepared(tmp_path, bpe("<unk>"), "the fox 你好 dog")


def byte_level(normalizer: t.normalizers.Normalizer) -> t.Tokenizer:
    made = t.Tokenizer.from_str(train_bpe(TEXT, 300).text)
    made.normalizer = normalizer
    return made


@pytest.mark.parametrize("text", ["the fox \ue000 dog", "the fox \U000323b0 dog", "the fox \U0001f600 dog"])
def test_a_character_that_is_lost_is_found_anywhere_in_the_text(tmp_path: Path, text: str) -> None:
    """Also private and unassigned ones (of a later Unicode), and behind what every file is tried on."""
    with pytest.raises(UsageError, match=r"loses .* of the characters"):
        prepared(tmp_path, bpe(None), f"{'the fox ' * 9000}\n{text}\n{'the dog ' * 9000}")


@pytest.mark.parametrize("text", ["नमस्ते दुनिया", "สวัสดีครับ ที่นี่", "வணக்கம்"])
def test_vowel_signs_are_letters(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"loses .* of the characters"):
        prepared(tmp_path, byte_level(t.normalizers.BertNormalizer(strip_accents=True)), text)
    prepared(tmp_path, byte_level(t.normalizers.NFC()), text)


def test_lines_that_run_together_are_told(tmp_path: Path, recwarn) -> None:
    prepared(tmp_path, byte_level(t.normalizers.NFC()), "the fox\njumps\nover")
    assert not [w for w in recwarn if "line ends" in str(w.message)]
    with pytest.warns(UserWarning, match="loses 50% of the white space of this text"):
        prepared(tmp_path, byte_level(t.normalizers.Replace(t.Regex(r"\s+"), " ")), "the fox\njumps\nover")


def test_a_byte_level_tokenizer_knows_every_character() -> None:
    assert train_bpe(TEXT, 300).knows_every_character
    assert not Tokenizer(bpe(None).to_str()).knows_every_character
    assert not Tokenizer(bpe("<unk>").to_str()).knows_every_character


def test_a_text_with_marks_that_cannot_be_encoded_is_a_message() -> None:
    broken = t.Tokenizer(t.models.WordLevel({"the": 0, "</s>": 1}, unk_token="[UNK]"))
    with pytest.raises(UsageError, match="cannot encode the text that begins 'another word'"):
        Tokenizer(broken.to_str()).encode_marked("another word")


def test_a_tokenizer_is_loaded_under_a_locale_of_ascii(tmp_path: Path) -> None:
    """The arguments of a process are in the encoding of the file system there."""
    unigram().save(str(tmp_path / "tokenizer.json"))
    code = f"from lowrise.data import Tokenizer; print(Tokenizer.load({str(tmp_path)!r}).separator_token)"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "</s>\n", done.stderr[-400:]


def test_a_normalizing_tokenizer_loses_nothing(tmp_path: Path, recwarn) -> None:
    made = bpe(None)
    made.normalizer = t.normalizers.BertNormalizer()
    prepared(tmp_path, made, "The FOX, thé dog".replace(",", ""))
    assert not [w for w in recwarn if "loses" in str(w.message)]


def test_a_tokenizer_that_raises_is_a_message(tmp_path: Path) -> None:
    broken = t.Tokenizer(t.models.WordLevel({"the": 0, "</s>": 1}, unk_token="[UNK]"))
    with pytest.raises(UsageError, match="cannot encode the text"):
        prepared(tmp_path, broken, "another word")


def test_chance_decides_no_token() -> None:
    """A file may ask for BPE dropout."""
    made = t.Tokenizer.from_str(train_bpe(["the fox jumps over the dog"] * 9, 300).text)
    expected = made.encode("the fox jumps over the dog " * 9).ids
    made.model.dropout = 0.5
    ours = Tokenizer(made.to_str())
    assert all(ours.encode("the fox jumps over the dog " * 9) == expected for _ in range(5))
    assert all(ours.encode_marked("the fox jumps over the dog " * 9) == expected for _ in range(5))


@pytest.mark.parametrize("normalizer", [t.normalizers.Replace(t.Regex(r"\s+"), " "), None])
def test_a_tokenizer_that_loses_lines_is_told(normalizer, tmp_path: Path, recwarn) -> None:
    made = t.Tokenizer.from_str(train_bpe(TEXT, 300).text)
    if normalizer is not None:
        made.normalizer = normalizer
    prepared(tmp_path, made, "if a:\n    b\n\telse c\n" * 20)
    told = [str(w.message) for w in recwarn if "white space" in str(w.message)]
    assert len(told) == (normalizer is not None)
    assert all("of the white space of this text, '\\n \\t' among it" in line for line in told)
