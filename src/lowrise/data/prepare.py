"""Text -> token shards, once: the same request again opens what is there.

    1. find the files, hash them                                          (corpora.py)
    2. load the tokenizer, or train it on a bounded sample and keep it     (tokenizer.py)
    3. fingerprint = hash of (contents, options, tokenizer, format version) names the directory
    4. documents -> pieces -> blocks -> token ids -> parts                 (pieces.py, shards.py)
    5. index.json, which makes the corpus whole

A part is the work between two points at which a killed preparation can go on: at most `PART_BYTES` of text
and one block, written as one shard a split and a `part-00000.json` with the place where the next part begins.
One process prepares a corpus at a time (a lock that dies with it); others wait, and find it finished.

Tokenization runs on the threads of the tokenizers library, free of the GIL, while this process reads the next
block: the rest (reading, parsing, writing) costs about a twentieth of it, so processes should help
beyond some 16 cores only, and would ask every user script for a `__main__` guard.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowrise.data.config import DataConfig
from lowrise.data.corpora import HashCache, Kept, SourceFile, find_held_out, find_sources
from lowrise.data.corpus import FORMAT_VERSION, INDEX, Corpus, make_index, open_corpus
from lowrise.data.hub import BYTES_PER_TOKEN, kept_text
from lowrise.data.limit import TokenLimit, token_limits
from lowrise.data.log import PrepareLog
from lowrise.data.pieces import Piece, pieces, with_held_out_tail
from lowrise.data.shards import (
    DTYPES,
    Shard,
    ShardWriter,
    Split,
    dtype_for,
    explained_disk_errors,
    locked,
)
from lowrise.data.tokenizer import Tokenizer, train_bpe
from lowrise.errors import UsageError
from lowrise.files import flush, write_whole

PART_BYTES = 2**28
BLOCK_CHARS = 2**21  # tokenized at once: enough for every thread, and about 200 MB while it lasts
BLOCK_PIECES = 2**13
SPLITS = ("train", "valid")

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what): stored bytes of the sources so far and in all, and the stage."""


class Place(NamedTuple):
    """Where a part begins: the number of the file, and of the piece in it."""

    file: int
    piece: int


@dataclass
class Counts:
    """What a part holds of one split."""

    documents: int = 0
    text_bytes: int = 0
    tokens_by_file: dict[str, int] = field(default_factory=dict)
    """Number of the file (as JSON writes it) -> its tokens, separators included."""


def cache_root(cache: str | None = None) -> Path:
    """The argument, else $LOWRISE_CACHE, else ~/.cache/lowrise."""
    return Path(cache or os.environ.get("LOWRISE_CACHE") or "~/.cache/lowrise").expanduser().absolute()


def prepare(config: DataConfig | None = None, *, progress: Progress | None = None) -> Corpus:
    """Open the corpus of `config`, after preparing it if that has not been done yet.

    Raises:
        UsageError: the sources, the tokenizer or the text cannot be used as asked; the place is named.
        LowriseError: no space, an absent package, a damaged cache.
    """
    config = config or DataConfig()
    config.check()
    return _prepared(config, find_sources, progress)


def prepare_held_out(
    sources: Sequence[str],
    tokenizer: str | Path,
    like: DataConfig,
    *,
    progress: Progress | None = None,
) -> Corpus:
    """Texts to evaluate on, whole, with a given tokenizer: a corpus whose `valid` holds all of them and whose
    `train` is empty. How documents are found, separated and cached is as in `like`.

    Raises as `prepare`.
    """
    texts = tuple(sources)
    config = replace(like, source=texts, valid=texts, weights=(), tokenizer=str(tokenizer), max_tokens=None)
    config.check()
    return _prepared(config, find_held_out, progress)


def _prepared(
    config: DataConfig, find: Callable[[DataConfig, Kept], list[SourceFile]], progress: Progress | None
) -> Corpus:
    """The corpus of the files that `find` finds."""
    report = progress or (lambda done, total, what: None)
    if config.workers:
        # The library makes its threads once, at their first use; a number that the user has set stays.
        os.environ.setdefault("RAYON_NUM_THREADS", str(config.workers))
    root = cache_root(config.cache)
    with explained_disk_errors(root):
        for directory in (root / "corpora", root / "tokenizers"):
            directory.mkdir(parents=True, exist_ok=True)

        def kept(spec: str, tokens: int | None) -> list[Path] | None:
            limit = None if tokens is None else tokens * BYTES_PER_TOKEN
            return kept_text(spec, config.text_key, limit, root, report)

        files = find(config, kept)
        hashes = _hash_all(files, root, report)
        files = with_held_out_tail(files, config)
        contents = [
            file.identity(sha256, config.text_key) for file, sha256 in zip(files, hashes, strict=True)
        ]
        tokenizer = _tokenizer(config, files, contents, root, report)
        fingerprint = _digest(
            FORMAT_VERSION,
            contents,
            _split_options(config),
            tokenizer.sha256,
            tokenizer.separator_token,
            *([list(token_limits(config).values())] if config.max_tokens else []),
        )
        directory = root / "corpora" / fingerprint[:32]
        if not (directory / INDEX).exists():
            if config.tokenizer is not None:
                _require_lossless(config, files, tokenizer)
            with locked(directory.with_suffix(".lock"), lambda: report(0, 0, "waiting for another process")):
                if not (directory / INDEX).exists():
                    with PrepareLog(root, fingerprint).opened(config, files) as log:
                        _write_corpus(directory, fingerprint, config, files, hashes, tokenizer, report, log)
    corpus = open_corpus(directory)
    return corpus.mixed(config.weights, _tokens_by_source(files, corpus)) if config.weights else corpus


def _tokens_by_source(files: list[SourceFile], corpus: Corpus) -> dict[str, int]:
    """Entry of data.source -> its tokens in the training stream, in the order in which they lie there."""
    tokens: dict[str, int] = {}
    for file, entry in zip(files, corpus.index["sources"], strict=True):
        if file.split != "valid":
            tokens[file.source] = tokens.get(file.source, 0) + entry["tokens"]["train"]
    return tokens


def _holds_out_a_tail(config: DataConfig, files: list[SourceFile]) -> bool:
    """Whether `with_held_out_tail` has cut the text, whose sources name no split themselves."""
    return not config.valid and any(file.split == "valid" or file.tail_from is not None for file in files)


def _split_options(config: DataConfig) -> list[object]:
    return [] if config.valid else [config.valid_fraction, config.split_seed]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _hash_all(files: list[SourceFile], root: Path, report: Progress) -> list[str]:
    cache = HashCache(root / "hashes.json")
    total = sum(file.size for file in files)
    done = 0
    hashes = []
    for file in files:
        report(done, total, "reading")
        hashes.append(cache.sha256(file))
        done += file.size
    report(total, total, "reading")
    cache.save()
    return hashes


# 2. The tokenizer


def _tokenizer(
    config: DataConfig, files: list[SourceFile], contents: list[list[object]], root: Path, report: Progress
) -> Tokenizer:
    if config.tokenizer is not None:
        return Tokenizer.load(config.tokenizer, separator_token=config.separator_token)
    trained_on = [content for file, content in zip(files, contents, strict=True) if file.split != "valid"]
    key = _digest(
        FORMAT_VERSION, trained_on, _split_options(config), config.vocab_size, config.tokenizer_sample_bytes
    )
    path = root / "tokenizers" / f"{key[:32]}.json"
    if not path.exists():
        with locked(path.with_suffix(".lock"), lambda: report(0, 0, "waiting for another process")):
            if not path.exists():
                trained = train_bpe(_sample(config, files, report), config.vocab_size)
                trained.write(path)
    return Tokenizer.load(path, separator_token=config.separator_token)


# Text of each file that a given tokenizer is tried on, and of all of them, in characters.
TRIED_OF_FILE, TRIED = 2**16, 2**20


def _require_lossless(config: DataConfig, files: list[SourceFile], tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that drops characters, and warn of one that has entries for too few of them."""
    texts: list[str] = []
    for file in files:
        seen = 0
        for piece in pieces(file, config):
            texts.append(piece.text)
            seen += len(piece.text)
            if seen >= TRIED_OF_FILE:
                break
        if sum(map(len, texts)) >= TRIED:
            break
    share, characters = tokenizer.lost_share(texts) if texts else (0.0, "")
    if not share:
        return
    told = (
        f"{tokenizer.name} loses {100 * share:.2g}% of the characters of this text, {characters!r} among them"
    )
    if tokenizer.unknown_id is None:
        raise UsageError(
            f"{told}, and has no entry for what it does not know: give a tokenizer with all bytes or an "
            "unk_token, or leave data.tokenizer out to train one on the corpus."
        )
    warnings.warn(f"{told}: the model never sees them, and bits per byte come out too low.", stacklevel=3)


def _sample(config: DataConfig, files: list[SourceFile], report: Progress) -> Iterator[str]:
    """Training text for the tokenizer: the beginning of every file, in proportion to its stored size."""
    files = [file for file in files if file.split != "valid"]
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        report(done, config.tokenizer_sample_bytes, "sampling text for the tokenizer")
        left = -(-config.tokenizer_sample_bytes * file.size // max(total, 1))
        for piece in pieces(file, config):
            if piece.split == "train":
                yield piece.text
                left -= piece.text_bytes
                done += piece.text_bytes
            if left <= 0:
                break
    report(done, done, "training the tokenizer")


# 4. and 5. The shards


def _write_corpus(
    directory: Path,
    fingerprint: str,
    config: DataConfig,
    files: list[SourceFile],
    hashes: list[str],
    tokenizer: Tokenizer,
    report: Progress,
    log: PrepareLog,
) -> None:
    directory.mkdir(exist_ok=True)
    work = _Work(directory, sum(file.size for file in files), tokenizer, report)
    parts = work.finished_parts()
    limit = TokenLimit(files, token_limits(config))
    for part in parts:
        limit.count(part["splits"]["train"]["tokens_by_file"])
    while not parts or parts[-1]["next"] is not None:
        start = Place(*parts[-1]["next"]) if parts else Place(0, 0)
        # One pass over the sources for all parts: to begin anew at each would read a large file once a part.
        blocks = _blocks(files, config, start, tokenizer.joins_pieces())
        limit.jumped = False
        while (not parts or parts[-1]["next"] is not None) and not limit.jumped:
            parts.append(work.write_part(len(parts), blocks, limit))
            log.part(len(parts), parts[-1]["splits"])
    splits = {name: _total(parts, name) for name in SPLITS}
    asked = [name for name in SPLITS if any(file.split in (name, None) for file in files)]
    _require_text(config, splits, asked)
    tokenizer.write(directory / "tokenizer.json")
    sources = [
        {
            "name": file.name,
            "bytes": file.size,
            "sha256": sha256,
            "split": file.split,
            "tokens": {name: _tokens_of_file(parts, name, number) for name in SPLITS},
        }
        for number, (file, sha256) in enumerate(zip(files, hashes, strict=True))
    ]
    options = asdict(config)
    del options["cache"], options["workers"]  # they say how it was made, not what it is
    del options["weights"]  # how it is read
    options["held_out"] = "tail" if _holds_out_a_tail(config, files) else "documents"
    index = make_index(fingerprint, tokenizer, dtype_for(tokenizer.vocab_size), splits, sources, options)
    write_whole(directory / INDEX, json.dumps(index, indent=1).encode())
    for number in range(len(parts)):
        _part_path(directory, number).unlink()


def _part_path(directory: Path, number: int) -> Path:
    return directory / f"part-{number:05d}.json"


def _total(parts: list[dict[str, Any]], name: str) -> Split:
    entries = [part["splits"][name] for part in parts]
    shards = tuple(Shard(**entry["shard"]) for entry in entries if entry["shard"] is not None)
    return Split(
        documents=sum(entry["documents"] for entry in entries),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(entry["text_bytes"] for entry in entries),
        shards=shards,
    )


def _tokens_of_file(parts: list[dict[str, Any]], name: str, number: int) -> int:
    return sum(part["splits"][name]["tokens_by_file"].get(str(number), 0) for part in parts)


def _require_text(config: DataConfig, splits: dict[str, Split], asked: Collection[str]) -> None:
    """An empty split that was asked for is a mistake that should be heard of now."""
    documents = sum(split.documents for split in splits.values())
    if not any(split.text_bytes for split in splits.values()):
        raise UsageError(
            f"The corpus is empty: {', '.join(config.source)} has no text in its {documents} documents."
        )
    for name, other in (("train", "valid"), ("valid", "train")):
        if splits[name].text_bytes or name not in asked:
            continue
        if config.valid:
            sources = config.source if name == "train" else config.valid
            raise UsageError(f"The {name} split is empty: {', '.join(sources)} has no text.")
        raise UsageError(
            f"The {name} split is empty: all {documents} documents of {', '.join(config.source)} fell into "
            f"{other} (data.valid_fraction is {config.valid_fraction:g}). Name held-out files with "
            "data.valid, or split a text file into documents with data.document_separator, or change "
            "data.valid_fraction."
        )


@dataclass
class _Work:
    """What every part needs to know."""

    directory: Path
    total_bytes: int  # of the sources, for progress
    tokenizer: Tokenizer
    report: Progress

    def finished_parts(self) -> list[dict[str, Any]]:
        """Parts that an interrupted preparation has completed, up to the first missing or damaged one."""
        parts: list[dict[str, Any]] = []
        itemsize = DTYPES[dtype_for(self.tokenizer.vocab_size)].itemsize
        while (path := _part_path(self.directory, len(parts))).exists():
            try:
                part = json.loads(path.read_bytes())
                if part["next"] is not None:
                    Place(*(int(number) for number in part["next"]))
                for name in SPLITS:
                    entry = part["splits"][name]
                    Counts(entry["documents"] + 0, entry["text_bytes"] + 0, dict(entry["tokens_by_file"]))
                    if entry["shard"] is None:
                        continue
                    shard = Shard(**entry["shard"])
                    file = self.directory / f"{name}-{len(parts):05d}.bin"
                    if shard.file != file.name or file.stat().st_size != shard.tokens * itemsize:
                        return parts
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                return parts  # cut or damaged: made anew
            parts.append(part)
        return parts

    def write_part(self, number: int, blocks: Iterator[_Block], limit: TokenLimit) -> dict[str, Any]:
        """Take the blocks of one part, write their shards, then the part's JSON. It ends early where the
        limit lets it jump."""
        dtype = dtype_for(self.tokenizer.vocab_size)
        separator = DTYPES[dtype].type(self.tokenizer.separator_id)
        counts = {name: Counts() for name in SPLITS}
        end: Place | None = None
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(ShardWriter(self.directory / f"{name}-{number:05d}.bin", dtype))
                for name in SPLITS
            }
            for block, encoded in _encoded_ahead(_one_part(blocks), self.tokenizer, DTYPES[dtype]):
                for piece, file, ids in zip(block.pieces, block.files, encoded, strict=True):
                    if piece.split == "train" and limit.reached(file):
                        continue
                    if piece.split == "train":
                        limit.count({str(file): len(ids)})
                        if not piece.ends and limit.reached(file):
                            ids, piece = np.append(ids, separator), piece._replace(ends=True)
                    writers[piece.split].write(ids)
                    count = counts[piece.split]
                    count.documents += piece.ends
                    count.text_bytes += piece.text_bytes
                    count.tokens_by_file[str(file)] = count.tokens_by_file.get(str(file), 0) + len(ids)
                    if limit.reached(file) and limit.can_jump(file):
                        limit.jumped = True
                        break
                self.report(block.done, self.total_bytes, "tokenizing")
                end = block.next
                if limit.jumped:
                    following = limit.next_file(file)
                    end = None if following is None else Place(following, 0)
                    break
            shards = {name: writer.close() for name, writer in writers.items()}
        return self._finish_part(number, end, shards, counts)

    def _finish_part(
        self, number: int, end: Place | None, shards: dict[str, Shard], counts: dict[str, Counts]
    ) -> dict[str, Any]:
        splits: dict[str, Any] = {}
        for name, shard in shards.items():
            if not shard.tokens:
                (self.directory / shard.file).unlink()
            splits[name] = {**asdict(counts[name]), "shard": asdict(shard) if shard.tokens else None}
        flush(self.directory)
        part = {"next": end, "splits": splits}
        write_whole(_part_path(self.directory, number), json.dumps(part).encode())
        return part


class _Block(NamedTuple):
    """Pieces to tokenize at once; `next` is the place after them, None at the end of the corpus."""

    pieces: list[Piece]
    files: list[int]  # number of the file that each piece is from
    next: Place | None
    done: int  # stored bytes of the sources read so far


def _blocks(files: list[SourceFile], config: DataConfig, start: Place, cut: bool) -> Iterator[_Block]:
    """All pieces from `start` on. The last block may be empty, and alone has `next` None."""
    block: list[Piece] = []
    numbers: list[int] = []
    size = 0
    before = sum(file.size for file in files[: start.file])
    for file_number in range(start.file, len(files)):
        file = files[file_number]
        for piece_number, piece in enumerate(pieces(file, config, cut=cut)):
            if file_number == start.file and piece_number < start.piece:
                continue
            if size >= BLOCK_CHARS or len(block) >= BLOCK_PIECES:
                yield _Block(block, numbers, Place(file_number, piece_number), before + block[-1].position)
                block, numbers, size = [], [], 0
            block.append(piece)
            numbers.append(file_number)
            size += len(piece.text)
        before += file.size
    yield _Block(block, numbers, None, before)


def _one_part(blocks: Iterator[_Block]) -> Iterator[_Block]:
    """As many of the blocks as make a part."""
    size = 0
    for block in blocks:
        yield block
        size += sum(piece.text_bytes for piece in block.pieces)
        if size >= PART_BYTES:
            return


def _encoded_ahead(
    blocks: Iterator[_Block], tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> Iterator[tuple[_Block, list[npt.NDArray[Any]]]]:
    """Each block with the ids of its pieces, while the next block is being read."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[_Block, Future[list[npt.NDArray[Any]]]] | None = None
        for block in blocks:
            following = block, pool.submit(_encode, block.pieces, tokenizer, dtype)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _encode(block: list[Piece], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> list[npt.NDArray[Any]]:
    """Ids of each piece, with the separator after the last one of a document."""
    texts = [piece.text for piece in block]
    ends = [[tokenizer.separator_id] if piece.ends else [] for piece in block]
    return [
        np.array(ids + end, dtype=dtype) for ids, end in zip(tokenizer.encode_batch(texts), ends, strict=True)
    ]
