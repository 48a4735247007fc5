"""A small tokenizer and small texts for the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrise.data import Tokenizer, TokenStream, train_bpe

# What readers and tokenizers have been known to lose: Windows newlines, indentation, trailing space, other
# scripts, characters outside the basic plane, control characters, the text of a special token.
DOCUMENTS = [
    "The quick brown fox\njumps over the lazy dog.\n",
    "Windows\r\nline ends\r\n\r\n  indented\tand trailing  \n\n\n",
    "Grüße, 世界! Ελληνικά — “quotes” … 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🙂🏳️‍🌈",
    "a<|endoftext|>b<|pad|>c \x01\x1f\x85\u2028 end",
    "no newline at the end",
    "",
    "def f(x):\n    return x ** 2\n" * 40,
]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return DOCUMENTS


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(DOCUMENTS * 3, 320).write(path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def split_documents(stream: TokenStream, tokenizer: Tokenizer) -> list[str]:
    """The documents of a stream, read back from its tokens."""
    found: list[str] = []
    ids: list[int] = []
    for token in stream.read(0, stream.tokens).tolist():
        if token == tokenizer.separator_id:
            found.append(tokenizer.decode(ids))
            ids = []
        else:
            ids.append(token)
    assert not ids, "the stream must end with a separator"
    return found


@pytest.fixture(name="split_documents")
def _split_documents() -> object:
    return split_documents
