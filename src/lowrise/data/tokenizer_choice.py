"""Which tokenizer a corpus is written with: a given one that loses no text, or one trained on a sample."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import tokenizers

from lowrise.data.config import DataConfig
from lowrise.data.corpora import SourceFile
from lowrise.data.parts import Progress
from lowrise.data.pieces import pieces
from lowrise.data.shards import locked
from lowrise.data.tokenizer import Tokenizer, train_bpe
from lowrise.errors import LowriseError, UsageError
from lowrise.files import write_whole

CONTENT_VERSION = 2  # of what decides the tokens; a change prepares every corpus anew


def split_options(config: DataConfig) -> list[object]:
    """What decides the split, apart from the text."""
    return [] if config.valid else [config.valid_fraction, config.split_seed]


def digest(*parts: object) -> str:
    """SHA-256 of the parts, as JSON writes them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenizer_for(
    config: DataConfig, files: list[SourceFile], contents: list[list[object]], root: Path, report: Progress
) -> Tokenizer:
    """The tokenizer of `config`, or the one that is trained on its text, once.

    Raises `UsageError` for a file that is none, `LowriseError` for a trained one that is not as written.
    """
    if config.tokenizer is not None:
        known = root / "tokenizers"
        loaded = Tokenizer.load(
            config.tokenizer,
            separator_token=config.separator_token,
            is_known=lambda sha256: _loads(known, sha256).exists(),
        )
        with suppress(OSError):  # where nothing can be written it is tried again
            _loads(known, loaded.sha256).touch()
        return loaded
    trained_on = [content for file, content in zip(files, contents, strict=True) if file.split != "valid"]
    key = digest(
        CONTENT_VERSION, trained_on, split_options(config), config.vocab_size, config.tokenizer_sample_bytes
    )
    path = root / "tokenizers" / f"{key[:32]}.json"
    seal = path.with_suffix(".sha256")
    if not path.exists():
        with locked(path.with_suffix(".lock"), lambda: report(0, 0, "waiting for another process")):
            if not path.exists():
                trained = train_bpe(_sample(config, files, report), config.vocab_size)
                write_whole(seal, trained.sha256)
                trained.write(path)
    wanted = seal.read_bytes().decode(errors="replace") if seal.is_file() else None  # older caches have none
    try:
        tokenizer = Tokenizer.load(
            path, separator_token=config.separator_token, is_known=lambda sha256: sha256 == wanted
        )
        found: str | None = tokenizer.sha256
    except UsageError:
        if wanted is None or _sha256_of(path) == wanted:
            raise
        found = None
    if wanted not in (None, found):
        raise LowriseError(
            f"{path} is not the tokenizer that was trained: delete it and start again, it is then trained "
            "anew."
        )
    return tokenizer


def _sha256_of(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _loads(folder: Path, sha256: str) -> Path:
    """An empty file that says that this version of the library loads the tokenizer with this hash."""
    return folder / f"{sha256[:32]}-{tokenizers.__version__}.loads"


# Text of each file that a given tokenizer is tried on, of all of them, and around a character that is met
# later for the first time, in characters.
TRIED_OF_FILE, TRIED, TRIED_AROUND = 2**16, 2**20, 2**5

LOST_SPACES = 0.01
"""Share of white space that a tokenizer may lose without a word: SentencePiece joins two spaces to one."""


def require_lossless(
    config: DataConfig, files: list[SourceFile], tokenizer: Tokenizer, report: Progress
) -> None:
    """Refuse a tokenizer that drops characters, and warn of one that has entries for too few of them or loses
    white space. One that has no entry for each byte is tried on every character of the text.
    """
    texts = list(_tried(config, files, tokenizer, report))
    if not texts:
        return
    _require_characters(tokenizer, texts)
    spaces, kinds = tokenizer.lost_spaces(texts)
    if spaces > LOST_SPACES:
        warnings.warn(
            f"{tokenizer.name} loses {100 * spaces:.3g}% of the white space of this text, {kinds!r} among "
            "it: the model never sees lines or indentation as they are, and bits per byte come out too low.",
            stacklevel=5,
        )


def _require_characters(tokenizer: Tokenizer, texts: list[str]) -> None:
    share, characters = tokenizer.lost_share(texts)
    if not share:
        return
    told = (
        f"{tokenizer.name} loses {100 * share:.3g}% of the characters of this text, {characters!r} among them"
    )
    if tokenizer.unknown_id is None:
        raise UsageError(
            f"{told}, and has no entry for what it does not know: give a tokenizer with all bytes or an "
            "unk_token, or leave data.tokenizer out to train one on the corpus."
        )
    warnings.warn(f"{told}: the model never sees them, and bits per byte come out too low.", stacklevel=6)


def _tried(
    config: DataConfig, files: list[SourceFile], tokenizer: Tokenizer, report: Progress
) -> Iterator[str]:
    """The beginning of every file, and the surroundings of each character that does not come in those."""
    known: set[str] = set()
    whole = not tokenizer.knows_every_character
    tried, done, total = 0, 0, sum(file.size for file in files)
    for file in files:
        limit = tried + TRIED_OF_FILE
        for piece in pieces(file, config):
            text = piece.text
            if tried < min(limit, TRIED):
                tried += len(text)
                known.update(text)
                yield text
            elif not whole:
                break
            for character in sorted(set(text) - known):
                place = text.index(character)
                yield text[max(0, place - TRIED_AROUND) : place + TRIED_AROUND]
            known.update(text)
            done += piece.text_bytes
            report(min(done, total), total, "trying the tokenizer on every character")
        if tried >= TRIED and not whole:
            break


def _sample(config: DataConfig, files: list[SourceFile], report: Progress) -> Iterator[str]:
    """Training text for the tokenizer: the beginning of every file, in proportion to its stored size."""
    files = [file for file in files if file.split != "valid"]
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        left = -(-config.tokenizer_sample_bytes * file.size // max(total, 1))
        for piece in pieces(file, config):
            if piece.split == "train":
                yield piece.text
                left -= piece.text_bytes
                done += piece.text_bytes
            report(done, config.tokenizer_sample_bytes, "sampling text for the tokenizer")
            if left <= 0:
                break
    report(done, done, "training the tokenizer")
