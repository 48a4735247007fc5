"""The parts of a preparation: the work between two points at which a killed one can go on.

A part is at most `PART_BYTES` of text and one block, written as one shard a split and a `part-00000.json`,
which has a checksum of its own and the place where the next part begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowrise.data.config import DataConfig
from lowrise.data.corpora import SourceFile
from lowrise.data.index import check_shard
from lowrise.data.limit import TokenLimit
from lowrise.data.pieces import Cut, Piece, pieces
from lowrise.data.shards import DTYPES, Shard, ShardWriter, dtype_for
from lowrise.data.tokenizer import Tokenizer
from lowrise.data.words import num_words, words_of_samples
from lowrise.files import flush, is_count, read_json, require_seal, sealed, write_whole

PART_BYTES = 2**28
BLOCK_CHARS = 2**21  # tokenized at once: enough for every thread, and about 200 MB while it lasts
BLOCK_PIECES = 2**13
SPLITS = ("train", "valid")

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what): bytes so far and in all, and the stage."""


def adding_up(report: Progress, total: int, what: str) -> Callable[[int], None]:
    """Reports the sum of the bytes that it is called with, one number after the other."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(done, total, what)

    return add


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


def part_path(directory: Path, number: int) -> Path:
    return directory / f"part-{number:05d}.json"


def remove_parts(directory: Path) -> None:
    """Remove what tells of the parts of a corpus that is finished, where this may be."""
    with suppress(OSError):
        for path in directory.glob("part-*.json"):
            path.unlink(missing_ok=True)


@dataclass
class PartWriter:
    """What every part needs to know."""

    directory: Path
    total_bytes: int  # of the sources, for progress
    tokenizer: Tokenizer
    report: Progress
    require_unchanged: Callable[[], None]  # raises if a source is no longer the one that names the corpus
    samples: bool = False  # whether what is written are the words of samples

    @property
    def _dtype(self) -> str:
        return dtype_for(num_words(self.tokenizer.vocab_size, self.samples))

    def finished_parts(self) -> list[dict[str, Any]]:
        """Parts that an interrupted preparation has completed, up to the first missing or damaged one, which
        is written again. The content of their shards is verified with the rest, once the corpus is whole.
        """
        parts: list[dict[str, Any]] = []
        while True:
            try:
                part = read_json(part_path(self.directory, len(parts)))
                self._check(part, len(parts))
            except (OSError, ValueError, KeyError, TypeError):
                return parts
            parts.append(part)

    def _check(self, part: Any, number: int) -> None:
        """Raise an error of the four above unless this is a part as it was written, with its shards."""
        require_seal(part)
        itemsize = DTYPES[self._dtype].itemsize
        if part["next"] is not None and not all(map(is_count, Place(*part["next"]))):
            raise ValueError("no place")
        for name in SPLITS:
            shard = part["splits"][name]["shard"]
            if shard is None:
                continue
            check_shard(shard, itemsize)
            file = self.directory / f"{name}-{number:05d}.bin"
            if shard["file"] != file.name or file.stat().st_size != shard["tokens"] * itemsize:
                raise ValueError(f"{file.name} is not the one of this part")

    def write_part(self, number: int, blocks: Iterator[Block], limit: TokenLimit) -> dict[str, Any]:
        """Take the blocks of one part, write their shards, then the part's JSON. It ends early where the
        limit lets it jump.
        """
        dtype = self._dtype
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
        self.require_unchanged()
        part = sealed({"next": end, "splits": splits})
        write_whole(part_path(self.directory, number), json.dumps(part).encode())
        return part


class Block(NamedTuple):
    """Pieces to tokenize at once; `next` is the place after them, None at the end of the corpus."""

    pieces: list[Piece]
    files: list[int]  # number of the file that each piece is from
    next: Place | None
    done: int  # stored bytes of the sources read so far


def blocks_from(files: list[SourceFile], config: DataConfig, start: Place, cut: Cut) -> Iterator[Block]:
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
                yield Block(block, numbers, Place(file_number, piece_number), before + block[-1].position)
                block, numbers, size = [], [], 0
            block.append(piece)
            numbers.append(file_number)
            size += len(piece.text)
        before += file.size
    yield Block(block, numbers, None, before)


def _one_part(blocks: Iterator[Block]) -> Iterator[Block]:
    """As many of the blocks as make a part."""
    size = 0
    for block in blocks:
        yield block
        size += sum(piece.text_bytes for piece in block.pieces)
        if size >= PART_BYTES:
            return


def _encoded_ahead(
    blocks: Iterator[Block], tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> Iterator[tuple[Block, list[npt.NDArray[Any]]]]:
    """Each block with the ids of its pieces, while the next block is being read."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Block, Future[list[npt.NDArray[Any]]]] | None = None
        for block in blocks:
            following = block, pool.submit(_encode, block.pieces, tokenizer, dtype)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _encode(block: list[Piece], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> list[npt.NDArray[Any]]:
    """Ids of each piece, with the separator after the last one of a document, or the words of samples."""
    if block and block[0].spans:
        return words_of_samples([piece.spans for piece in block], tokenizer, dtype)
    drops = tokenizer.cut is Cut.AT_SPACE
    texts = [p.text.removeprefix(" ") if drops and not p.starts else p.text for p in block]
    ends = [[tokenizer.separator_id] if piece.ends else [] for piece in block]
    return [
        np.array(ids + end, dtype=dtype) for ids, end in zip(tokenizer.encode_batch(texts), ends, strict=True)
    ]
