"""Whatever the text, the tokenizers library is given inputs of bounded size, with the ids of the whole.

Time is counted in characters handed on, not in seconds: the library's time is linear only up to some size.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers as t

from lowrise.data import DataConfig, Tokenizer, prepare, train_bpe
from lowrise.data.pieces import Cut
from lowrise.data.tokenizer import WORD_CHARS, _with_short_words

pieces_module = importlib.import_module("lowrise.data.pieces")
parts_module = importlib.import_module("lowrise.data.parts")

WORDS = "the fox jumps over the dog and it is so\nthen it was not, and ended"
REPETITIVE = ["a", "ab", "the fox ", " ", "\n", "日本", "1", "= ", " \n", "e\u0301"]


def byte_level() -> Tokenizer:
    return train_bpe([WORDS] * 3, 300)


def sentencepiece(scheme: str) -> Tokenizer:
    library = t.Tokenizer(t.models.Unigram())
    library.pre_tokenizer = t.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    library.decoder = t.decoders.Metaspace(prepend_scheme=scheme)
    trainer = t.trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator([WORDS] * 9, trainer)
    return Tokenizer(library.to_str())


def llama_2() -> Tokenizer:
    """A space before every text and no splitting: BPE with bytes for what it does not know."""
    letters = sorted(set(WORDS.replace(" ", "▁")))
    entries = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "▁t", "▁th", "▁the"]
    library = t.Tokenizer(
        t.models.BPE(
            {entry: i for i, entry in enumerate(dict.fromkeys(entries))},
            [("▁", "t"), ("▁t", "h"), ("▁th", "e")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    library.normalizer = t.normalizers.Sequence([t.normalizers.Prepend("▁"), t.normalizers.Replace(" ", "▁")])
    library.decoder = t.decoders.Sequence([t.decoders.Replace("▁", " "), t.decoders.ByteFallback()])
    return Tokenizer(library.to_str())


def bert() -> Tokenizer:
    library = t.Tokenizer(t.models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    trainer = t.trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    library.train_from_iterator([WORDS] * 9, trainer)
    return Tokenizer(library.to_str())


KINDS: dict[str, tuple[Callable[[], Tokenizer], Cut]] = {
    "byte-level": (byte_level, Cut.LINE),
    "sentencepiece always": (lambda: sentencepiece("always"), Cut.SPACE),
    "sentencepiece first": (lambda: sentencepiece("first"), Cut.SPACE),
    "sentencepiece never": (lambda: sentencepiece("never"), Cut.LINE),
    "llama 2": (llama_2, Cut.AT_SPACE),
    "bert": (bert, Cut.LINE),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limits that a little text reaches; the longest input that may come of them."""
    monkeypatch.setattr(pieces_module, "PIECE_CHARS", 100)
    monkeypatch.setattr(pieces_module, "WHOLE_CHARS", 150)
    monkeypatch.setattr(parts_module, "BLOCK_CHARS", 1_000)
    return 300


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:.* loses .* of the characters")
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_ids_of_whole_documents(kind: str, tmp_path: Path) -> None:
    make, cut = KINDS[kind]
    tokenizer = make()
    assert tokenizer.cut is cut
    tokenizer.write(tmp_path / "tokenizer.json")
    documents = [f"{WORDS} {n} " * (n * 3) for n in range(1, 9)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "v.txt").write_text(WORDS)
    corpus = prepare(
        DataConfig(
            source=str(tmp_path / "a.jsonl"),
            valid=str(tmp_path / "v.txt"),
            tokenizer=str(tmp_path / "tokenizer.json"),
            cache=str(tmp_path / "cache"),
        )
    )
    expected = [i for text in documents for i in [*tokenizer.encode(text), tokenizer.separator_id]]
    assert corpus.train.read(0, corpus.train.tokens).tolist() == expected
    assert corpus.train.text_bytes == sum(len(text.encode()) for text in documents)


@pytest.mark.filterwarnings("ignore:.* loses .* of the characters")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", REPETITIVE)
def test_what_the_library_is_given_is_bounded_and_grows_with_the_text(
    unit: str, kind: str, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[kind][0]().write(tmp_path / "tokenizer.json")
    given: list[int] = []
    encode_batch = Tokenizer.encode_batch

    def counted(self: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        given.extend(map(len, texts))
        return encode_batch(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    (tmp_path / "v.txt").write_text(WORDS)
    totals = []
    for size in (4_000, 8_000, 16_000):
        given.clear()
        (tmp_path / "a.txt").write_text((unit * size)[:size])
        prepare(
            DataConfig(
                source=str(tmp_path / "a.txt"),
                valid=str(tmp_path / "v.txt"),
                tokenizer=str(tmp_path / "tokenizer.json"),
                cache=str(tmp_path / "cache"),
            )
        )
        assert max(given) <= small
        totals.append(sum(given))
    assert all(later <= 2.6 * earlier for earlier, later in pairwise(totals))


@pytest.mark.parametrize(
    "text",
    [
        *(unit * 5_000 for unit in REPETITIVE),
        WORDS * 40,
        "\u3000" * 3_000,
        "",
        "x" * (WORD_CHARS - 1),
        "_." * 2_000,
    ],
)
def test_no_word_of_the_trainer_is_long_and_no_text_is_lost(text: str) -> None:
    cut = list(_with_short_words([text]))
    assert "".join(cut) == text
    splitter = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [end - start for part in cut for _, (start, end) in splitter.pre_tokenize_str(part)]
    assert max(words, default=0) <= WORD_CHARS + 1  # a space before a word is of it


def test_ordinary_text_is_trained_on_as_it_is() -> None:
    assert list(_with_short_words([WORDS, "日本語。" * 900])) == [WORDS, "日本語。" * 900]


def test_training_goes_through_each_long_word_once(tmp_path: Path) -> None:
    """Before, 4,000 merges went through 2**17 characters each; 60 times as long."""
    tokenizer = train_bpe(["ab" * 2**16, WORDS], 1_000)
    assert tokenizer.decode(tokenizer.encode("ab" * 40)) == "ab" * 40


def test_every_long_stage_shows_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_CHARS", 100)
    monkeypatch.setattr(parts_module, "BLOCK_CHARS", 1_000)
    monkeypatch.setattr(importlib.import_module("lowrise.data.hashes"), "READ_BYTES", 10_000)
    monkeypatch.setattr(importlib.import_module("lowrise.data.stored"), "BLOCK_BYTES", 10_000)
    (tmp_path / "a.txt").write_text((WORDS + "\n") * 2_000)
    told: dict[str, list[tuple[int, int]]] = {}
    config = DataConfig(source=str(tmp_path / "a.txt"), vocab_size=300, cache=str(tmp_path / "cache"))
    prepare(config, progress=lambda done, total, what: told.setdefault(what, []).append((done, total)))
    for what in (
        "reading",
        "looking for documents to hold out",
        "sampling text for the tokenizer",
        "tokenizing",
    ):
        assert len(set(told[what])) > 3 or what.startswith("looking"), what
        assert [done for done, _ in told[what]] == sorted(done for done, _ in told[what])
    assert {"training the tokenizer", "verifying"} <= told.keys()
