"""Documents -> pieces of bounded size, each with its split: the unit of tokenization and of resuming.

A document longer than two pieces is cut where a byte-level tokenizer would cut anyway: after a newline, else
before a space, between two characters that are not white space. GPT-2's splitting and its descendants
(cl100k, Llama 3) never merge across these places, so the tokens are those of the whole document. Only where
2**16 characters pass without any such place is the cut anywhere: the text still decodes to itself, with one
merge perhaps lost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from lowrise.data.config import DataConfig
from lowrise.data.corpora import SourceFile
from lowrise.data.readers import Chunk

PIECE_CHARS = 2**16
_AFTER_NEWLINE = re.compile(r"(?<=\S)\n(?=\S)")
_BEFORE_SPACE = re.compile(r"(?<=\S)(?= \S)")


class Piece(NamedTuple):
    """Part of a document, and what is to become of it."""

    text: str
    text_bytes: int  # as UTF-8
    split: str  # "train" | "valid"
    ends: bool  # the document
    position: int  # stored bytes of the file read so far


def pieces(file: SourceFile, config: DataConfig, *, cut: bool = True) -> Iterator[Piece]:
    """The file's documents in order. The same file and config give the same pieces: a number is a place.

    With `cut=False` every document is one piece, however long (for tokenizers that mark the start of a text).
    """
    if not cut:
        for text, position in _whole_documents(file.chunks(config.text_key)):
            yield Piece(text, len(text.encode()), _split_of(file, text, config), True, position)
        return
    split = None
    buffer, start = "", 0
    for chunk in file.chunks(config.text_key):
        buffer, start = buffer[start:] + chunk.text, 0
        while len(buffer) - start > 2 * PIECE_CHARS:
            end = _place_to_cut(buffer, start + PIECE_CHARS, start + 2 * PIECE_CHARS)
            text = buffer[start:end]
            split = split or _split_of(file, text, config)
            yield Piece(text, len(text.encode()), split, False, chunk.position)
            start = end
        if chunk.ends:
            text = buffer[start:]
            yield Piece(
                text, len(text.encode()), split or _split_of(file, text, config), True, chunk.position
            )
            buffer, start, split = "", 0, None


def _whole_documents(chunks: Iterator[Chunk]) -> Iterator[tuple[str, int]]:
    parts: list[str] = []
    for chunk in chunks:
        parts.append(chunk.text)
        if chunk.ends:
            yield "".join(parts), chunk.position
            parts = []


def _place_to_cut(text: str, first: int, last: int) -> int:
    """The first good place between `first` and `last`; `first` if there is none."""
    if newline := _AFTER_NEWLINE.search(text, first, last):
        return newline.end()
    if space := _BEFORE_SPACE.search(text, first, last):
        return space.start()
    return first


def _split_of(file: SourceFile, text: str, config: DataConfig) -> str:
    """The file's split, or one drawn by a hash of how the document begins: equal texts stay together."""
    if file.split is not None:
        return file.split
    key = text[:PIECE_CHARS] if file.split_key is None else file.split_key
    digest = hashlib.blake2b(
        key.encode(), digest_size=8, salt=config.split_seed.to_bytes(16, "little", signed=True)
    )
    share = int.from_bytes(digest.digest(), "little") / 2**64
    return "valid" if share < config.valid_fraction else "train"
