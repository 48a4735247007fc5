"""Documents -> pieces of bounded size, each with its split: the unit of tokenization and of resuming.

A document longer than two pieces is cut where a byte-level tokenizer would cut anyway: after a newline, else
before a space, between two characters that are not white space. GPT-2's splitting and its descendants
(cl100k, Llama 3) never merge across these places, so the tokens are those of the whole document. Only where
2**16 characters pass without any such place is the cut anywhere: the text still decodes to itself, with one
merge perhaps lost.

Other tokenizers mark the start of a text, or merge across lines. Their documents stay whole up to 2**21
characters; longer ones are cut at a space, in the way (`Cut`) that gives the ids of the whole where one does.
So no input of the tokenizers library, whose time and memory grow with it, is longer than 2**21 characters.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from lowrise.data.config import DataConfig
from lowrise.data.corpora import SourceFile
from lowrise.data.readers import Span

PIECE_CHARS = 2**16
WHOLE_CHARS = (
    2**20
)  # of a piece where the tokenizer does not join pieces at lines: rare, and no matter of speed
_AFTER_NEWLINE = re.compile(r"(?<=\S)\n(?=\S)")
_BEFORE_SPACE = re.compile(r"(?<=\S)(?= \S)")


class Cut(Enum):
    """Where a tokenizer lets a text be cut, so that the ids of its pieces are those of the whole."""

    LINE = "after a newline or before a space"
    SPACE = "before a space"
    AT_SPACE = "at a space, which the next piece leaves out: the tokenizer puts one before every text"
    NONE = "nowhere that is known: long documents are cut before a space, which may cost a token"


class Piece(NamedTuple):
    """Part of a document, and what is to become of it."""

    text: str
    text_bytes: int  # as UTF-8
    split: str  # "train" | "valid"
    starts: bool  # the document
    ends: bool  # the document
    position: int  # stored bytes of the file read so far
    spans: tuple[Span, ...] = ()  # of a sample, which is one piece


def pieces(file: SourceFile, config: DataConfig, *, cut: Cut = Cut.LINE) -> Iterator[Piece]:
    """The file's documents in order. The same file, config and cut give the same pieces: a number is a
    place.
    """
    found = _pieces(file, config, cut)
    return found if file.tail_from is None else _with_tail(found, file.tail_from)


Report = Callable[[int, int, str], None]


def with_held_out_tail(
    files: list[SourceFile], config: DataConfig, report: Report = lambda done, total, what: None
) -> list[SourceFile]:
    """The files, of which the last `valid_fraction` of the text is held out if whole documents, each drawn by
    itself, give no validation split or no training split: one text file, a handful of documents. Samples are
    never cut off by their place, as a prompt could be in both parts: those of whole prompts are held out
    (`_held_draws`). Of samples with one prompt the files stay as they are.

    Reads until both splits have a document, so all of the text only where this is the case.
    """
    if config.valid or any(file.split is not None for file in files):
        return files
    seen: set[str] = set()
    draws: dict[float, set[str]] = {}  # of a prompt -> the sources that have it
    chars = [0] * len(files)
    total, before = sum(file.size for file in files), 0
    for i, file in enumerate(files):
        for piece in _pieces(file, config, Cut.LINE):
            report(before + piece.position, total, "looking for documents to hold out")
            chars[i] += len(piece.text)
            if piece.text:
                seen.add(piece.split)
            if piece.spans:
                draw = _draw(_prompt_of(piece.spans)[:PIECE_CHARS], config)
                draws.setdefault(draw, set()).add(file.source)
            if len(seen) == 2:
                return files
        before += file.size
    if draws:
        held_draws = _held_draws(draws, config)
        return [replace(file, held_draws=held_draws) for file in files] if held_draws else files
    total = sum(chars)
    if total < 2:
        return files
    left = min(max(1, total - round(total * config.valid_fraction)), total - 1)
    held = []
    for file, count in zip(files, chars, strict=True):
        whole = "train" if left >= count else "valid" if left <= 0 else None
        held.append(replace(file, split=whole, tail_from=left if whole is None else None))
        left -= count
    return held


def _held_draws(draws: Mapping[float, set[str]], config: DataConfig) -> tuple[float, ...]:
    """The lowest draws, `valid_fraction` of them and one at least, without the last that is left of all, or
    of a source in a mixture."""
    wanted = max(1, round(len(draws) * config.valid_fraction))
    groups = {draw: {"", *sources} if config.weights else {""} for draw, sources in draws.items()}
    left = Counter(group for of in groups.values() for group in of)
    held: list[float] = []
    for draw in sorted(draws):
        if len(held) < wanted and all(left[group] > 1 for group in groups[draw]):
            held.append(draw)
            left.subtract(groups[draw])
    return tuple(held)


def _with_tail(found: Iterator[Piece], tail_from: int) -> Iterator[Piece]:
    """Training text up to the first good place to cut from character `tail_from` on, then held-out."""
    done = 0
    for piece in found:
        place = tail_from - done
        done += len(piece.text)
        if not 0 < place < len(piece.text):
            yield piece._replace(split="train" if place > 0 else "valid")
            continue
        end = _place_to_cut(piece.text, place, len(piece.text))
        head, tail = piece.text[:end], piece.text[end:]
        yield piece._replace(text=head, text_bytes=len(head.encode()), split="train", ends=True)
        yield piece._replace(text=tail, text_bytes=len(tail.encode()), split="valid", starts=True)


def _pieces(file: SourceFile, config: DataConfig, cut: Cut) -> Iterator[Piece]:
    size = PIECE_CHARS if cut is Cut.LINE else WHOLE_CHARS
    split = None
    buffer, start, starts = "", 0, True
    for chunk in file.chunks(config.text_key):
        if chunk.spans:
            size_of_answers = sum(span.text_bytes for span in chunk.spans)
            split = _split_of(file, _prompt_of(chunk.spans), config)
            yield Piece(chunk.text, size_of_answers, split, True, True, chunk.position, chunk.spans)
            split = None
            continue
        buffer, start = buffer[start:] + chunk.text, 0
        while len(buffer) - start > 2 * size:
            end = _place_to_cut(buffer, start + size, start + 2 * size, cut)
            text = buffer[start:end]
            split = split or _split_of(file, text, config)
            yield Piece(text, len(text.encode()), split, starts, False, chunk.position)
            start, starts = end, False
        if chunk.ends:
            text = buffer[start:]
            split = split or _split_of(file, text, config)
            yield Piece(text, len(text.encode()), split, starts, True, chunk.position)
            buffer, start, split, starts = "", 0, None, True


def _place_to_cut(text: str, first: int, last: int, cut: Cut = Cut.LINE) -> int:
    """The first good place between `first` and `last`; `first` if there is none."""
    if cut is Cut.LINE and (newline := _AFTER_NEWLINE.search(text, first, last)):
        return newline.end()
    if space := _BEFORE_SPACE.search(text, first, last):
        return space.start()
    return first


def _split_of(file: SourceFile, text: str, config: DataConfig) -> str:
    """The file's split, or one drawn by a hash of how the document begins: equal texts stay together, and so
    do samples with one prompt."""
    if file.split is not None:
        return file.split
    draw = _draw(text[:PIECE_CHARS] if file.split_key is None else file.split_key, config)
    held = draw < config.valid_fraction if file.held_draws is None else draw in file.held_draws
    return "valid" if held else "train"


def _prompt_of(spans: Sequence[Span]) -> str:
    """What stands before the first answer of a sample; without anything there, that answer."""
    return spans[0].text


def _draw(key: str, config: DataConfig) -> float:
    """A number in [0, 1) that the key decides."""
    digest = hashlib.blake2b(
        key.encode(), digest_size=8, salt=config.split_seed.to_bytes(16, "little", signed=True)
    )
    return int.from_bytes(digest.digest(), "little") / 2**64
