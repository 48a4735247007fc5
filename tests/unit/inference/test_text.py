"""Text from tokens, piece by piece: the same as the whole decoded at once, whatever the tokenizer."""

from __future__ import annotations

import random

import pytest
import tokenizers as t
from hypothesis import given
from hypothesis import strategies as st

from lowrise.data import Tokenizer
from lowrise.data.tokenizer import train_bpe
from lowrise.errors import UsageError
from lowrise.inference.text import StopStrings, TextStream, beyond

WORDS = ["[UNK]", "[SEP]", "the", "fox", "dog", "'", "s"]
TEXT = ["the fox jumps over the dog. Don't stop, it said: go!\n  and 12,345 more 你好 café 🦊"] * 9


def byte_level() -> Tokenizer:
    return train_bpe(TEXT, 300)


def metaspace(prepend: str = "always", *, byte_fallback: bool = False) -> Tokenizer:
    made = t.Tokenizer(t.models.BPE(unk_token="<unk>", byte_fallback=byte_fallback))
    made.pre_tokenizer = t.pre_tokenizers.Metaspace(prepend_scheme=prepend)
    marks = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    made.train_from_iterator(
        [line.encode("ascii", "ignore").decode() for line in TEXT],
        t.trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>", *marks]),
    )
    made.decoder = t.decoders.Metaspace(prepend_scheme=prepend)
    if byte_fallback:  # as Llama 2 has it
        made.decoder = t.decoders.Sequence(
            [
                t.decoders.Replace("▁", " "),
                t.decoders.ByteFallback(),
                t.decoders.Fuse(),
                t.decoders.Strip(" ", 1, 0),
            ]
        )
    return Tokenizer(made.to_str())


def word_piece() -> Tokenizer:
    words = ["[UNK]", "[SEP]", "the", "fox", "##es", "##y", "dog", ".", ",", "'", "t", "don", "n't", "!"]
    made = t.Tokenizer(t.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = t.pre_tokenizers.BertPreTokenizer()
    made.decoder = t.decoders.WordPiece()
    return Tokenizer(made.to_str())


MAKERS = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "metaspace, never": lambda: metaspace("never"),
    "byte fallback": lambda: metaspace(byte_fallback=True),
    "word piece": word_piece,
}


def streamed(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    stream = TextStream(tokenizer, prompt)
    return "".join([*(stream.push(token) for token in new), stream.finish()])


def whole_at_each_step(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    """What decoding the whole text for every token shows."""
    shown, text = tokenizer.decode(prompt), ""
    for end in range(1, len(new) + 1):
        whole = tokenizer.decode([*prompt, *new[:end]])
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            text += beyond(shown, whole)
            shown = whole
    return text + beyond(shown, tokenizer.decode([*prompt, *new]))


@pytest.mark.parametrize("name", MAKERS)
def test_real_text_comes_as_it_is(name: str) -> None:
    tokenizer = MAKERS[name]()
    ids = tokenizer.encode(" ".join(TEXT))
    for cut in (0, 1, 7, 100):
        prompt, new = ids[:cut], ids[cut:]
        expected = tokenizer.decode(ids)[len(tokenizer.decode(prompt)) :]
        assert streamed(tokenizer, prompt, new) == expected


@pytest.mark.parametrize("name", MAKERS)
def test_any_tokens_give_the_text_of_decoding_the_whole_each_time(name: str) -> None:
    tokenizer = MAKERS[name]()
    for seed in range(60):
        draw = random.Random(seed)
        ids = [draw.randrange(2, tokenizer.vocab_size) for _ in range(150)]
        if seed % 2:  # runs of one kind, and of valid characters between the others
            ids[40:90] = tokenizer.encode("the 你好 dogs 🦊" * 9)[:50]
        cut = draw.randrange(60)
        prompt, new = ids[:cut], ids[cut:]
        assert streamed(tokenizer, prompt, new) == whole_at_each_step(tokenizer, prompt, new), seed


@pytest.mark.parametrize("name", MAKERS)
def test_a_push_decodes_a_window_not_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = MAKERS[name]()
    ids = (tokenizer.encode(" ".join(TEXT)) * 20)[:3000]
    decoded = []
    plain = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or plain(ids))
    stream = TextStream(tokenizer, ids[:1000])
    decoded.clear()
    for token in ids[1000:]:
        stream.push(token)
    # The window moves on about every 24 tokens; the whole each time would be 2,000 tokens a push.
    assert sum(decoded) / 2000 < 60


def test_a_character_is_shown_once_it_is_whole() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("☃")
    assert len(ids) == 3
    stream = TextStream(tokenizer, [])
    assert [stream.push(i) for i in ids] == ["", "", "☃"]
    assert [stream.push(i) for i in ids[:2]] == ["", ""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
    assert stream.finish() == ""


def test_tokens_that_change_how_a_prompt_decodes_lose_nothing() -> None:
    made = t.Tokenizer(t.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = t.pre_tokenizers.Whitespace()
    made.decoder = t.decoders.Sequence(
        [t.decoders.WordPiece(cleanup=False), t.decoders.Fuse(), t.decoders.Replace(" ' s", "'s")]
    )
    closing = Tokenizer(made.to_str())
    prompt, new = closing.encode("the fox '"), closing.encode("s dog")
    assert closing.decode(prompt) == "the fox '"
    assert closing.decode([*prompt, *new]) == "the fox's dog"
    assert streamed(closing, prompt, new) == "s dog"
    snow = byte_level().encode("a☃b")
    assert byte_level().decode(snow[:2]) == "a\N{REPLACEMENT CHARACTER}"
    for cut in (1, 2, 3):  # before the character and within it
        assert streamed(byte_level(), snow[:cut], snow[cut:]) == "☃b"


@pytest.mark.parametrize(
    ("shown", "text", "new"),
    [
        ("the dog", "the dog runs", " runs"),
        ("it '", "it's here", "s here"),  # the gap before the mark is closed
        ("one ( two", "one (two)", ")"),
        ("a\ufffd", "a☃", "☃"),
        ("a\ufffd", "a\ufffdb", "b"),  # a replacement character that is meant
        ("", "a", "a"),
        ("a b", "a", ""),
    ],
)
def test_what_is_new_after_what_is_shown(shown: str, text: str, new: str) -> None:
    assert beyond(shown, text) == new


@given(st.text("ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_at_the_first_wherever_the_pieces_end(text: str, stops: list[str], data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stop = StopStrings(stops)
    shown = "".join(stop.push(piece) for piece in pieces)
    places = [text.find(s) for s in stops if s in text]
    assert stop.found == bool(places)
    if places:
        # A stop string that is complete ends the text, though a longer one had begun before it.
        assert text.startswith(shown)
        assert not any(s in shown for s in stops)
    assert shown + stop.finish() == (shown if places else text)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopStrings(["\nUser:"])
    assert [stop.push(p) for p in ("Yes", ".\n", "Us", "ual", "\nUser", ": no")] == [
        "Yes",
        ".",
        "",
        "\nUsual",
        "",
        "",
    ]
    assert stop.found
    assert stop.push("more") == ""


def test_an_empty_stop_string_is_a_message() -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        StopStrings(["a", ""])
