"""Batch number k: a pure function of (corpus, seed, k).

The stream of N tokens is a ring: after its last separator comes its first document. An epoch is n = N // L
windows of L targets (L = seq_len). Epoch e places window w at token (offset_e + w L) mod N, with offset_e
drawn anywhere in the stream, so the N - nL tokens that an epoch leaves out are others each time, and visits
the windows in the order of a keyed permutation of {0, ..., n-1}, computed element by element without ever
holding it.

With weights each source of the corpus is a ring of its own, with windows, epochs and orders of its own, and
sequence g belongs to the source that `mixture.assign` says.

Training counts sequences, not batches: row i of batch k is sequence g = k * sequences + i, of epoch g // n.
So two runs with other batch sizes see the same sequences in the same order, and a rank reads its rows alone.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowrise.data.mixture import Part, assign
from lowrise.data.shards import ShardReader, Split, TokenIds
from lowrise.errors import UsageError

ROUNDS = 8  # four rounds hide the structure of a large domain (Luby and Rackoff 1988); tiny ones want more


def permute(index: npt.NDArray[np.int64], size: int, key: bytes) -> TokenIds:
    """A pseudorandom bijection of {0, ..., size-1}, chosen by `key`, applied to each element of `index`.

    A balanced Feistel network on the next even power of two, at most 4 * size, walks cycles until it is back
    inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3.2): O(1) memory, fewer
    than four rounds of walking on average.

    Args:
        index: int64, each 0 <= index < size.
        size: 1 to 2**62.
        key: any bytes; another key, another permutation.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    round_keys = [
        np.uint64(
            int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=bytes([number])).digest(), "little")
        )
        for number in range(ROUNDS)
    ]
    values = index.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], half, round_keys)
        walking = walking[values[walking] >= np.uint64(size)]
    return values.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], half: np.uint64, keys: list[np.uint64]
) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014; Stafford's variant 13)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def order_key(seed: int, epoch: int) -> bytes:
    """What chooses the order of an epoch."""
    return hashlib.blake2b(f"lowrise order 1, seed {seed}, epoch {epoch}".encode()).digest()


class TokenStream:
    """One split of a prepared corpus: every document followed by the separator token.

    Attributes:
        documents, tokens: how many; tokens include one separator a document.
        text_bytes: UTF-8 bytes of the documents, the denominator of bits per byte.
    """

    def __init__(
        self, directory: Path, name: str, split: Split, dtype: str, separator_id: int, *, vocab_size: int
    ) -> None:
        self.name = name
        self.documents = split.documents
        self.tokens = split.tokens
        self.text_bytes = split.text_bytes
        self.separator_id = separator_id
        self.parts: tuple[Part, ...] = ()
        self._reader = ShardReader(directory, split.shards, dtype, vocab_size)

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, stop: int) -> TokenIds:
        """Tokens `start` to `stop` as int64. Raises `IndexError` outside the stream."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.tokens}")
        return self._reader.read(start, stop)

    @property
    def paths(self) -> list[Path]:
        """The shards' files, in order."""
        return self._reader.paths

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Check every block of every shard; raises `LowriseError` that names a damaged one."""
        self._reader.verify(on_bytes)

    def mixed(self, parts: Sequence[Part]) -> TokenStream:
        """The stream that draws from `parts`, which lie in it one after the other, by their weights."""
        stream = copy.copy(self)
        stream.parts = tuple(parts)
        return stream

    def _rings(self) -> tuple[Part, ...]:
        return self.parts or (Part("", 0, self.tokens),)

    def _windows_of(self, ring: Part, seq_len: int) -> int:
        """Windows of `seq_len` targets in one pass over a ring.

        Raises `UsageError` if it is too short for one.
        """
        if seq_len < 1:
            raise UsageError(f"The sequence length is {seq_len}: it must be at least 1.")
        if ring.tokens <= seq_len:
            of = f" of {ring.name}" if ring.name else ""
            raise UsageError(
                f"The {self.name} split{of} has {ring.tokens:,} tokens, too few for one sequence of "
                f"{seq_len:,}: use more text or a shorter sequence."
            )
        return ring.tokens // seq_len

    def epochs(self, k: int, *, sequences: int, seq_len: int) -> float:
        """Passes over the windows that batches 0 to k-1 have made; 1.5 is one and a half.

        Of a mixture, those over the source that has been passed most often.
        """
        total = sum(ring.weight for ring in self._rings())
        return max(
            k * sequences * ring.weight / total / self._windows_of(ring, seq_len) for ring in self._rings()
        )

    def batch(
        self, k: int, *, sequences: int, seq_len: int, seed: int, rows: slice | None = None
    ) -> TokenIds:
        """Batch k: int64 (sequences, seq_len + 1), inputs `[:, :-1]` and targets `[:, 1:]`.

        Args:
            k: number of the batch, from 0 and without end.
            sequences: rows of the whole batch.
            seq_len: targets a row.
            seed: of the order; the corpus, the seed and k decide every element.
            rows: the rows to read, a slice of the batch, for a rank that needs only its own.

        Raises:
            UsageError: a negative k, no rows, or a stream shorter than one sequence.
        """
        if k < 0 or sequences < 1:
            raise UsageError(
                f"There is no batch {k} of {sequences} sequences: k counts from 0, sequences from 1."
            )
        first, stop, step = (rows or slice(None)).indices(sequences)
        numbers = k * sequences + np.arange(first, stop, step, dtype=np.int64)
        batch = self._empty(len(numbers), seq_len)
        rings = self._rings()
        sources, within = assign(numbers, [ring.weight for ring in rings])
        for source, ring in enumerate(rings):
            mine = np.flatnonzero(sources == source)
            self._fill(batch, mine, ring, within[mine], seq_len, seed)
        return batch

    def predicted(self, k: int, *, sequences: int, seq_len: int, seed: int) -> int:
        """Targets of batch k that count, over all its rows."""
        return sequences * seq_len

    @property
    def targets(self) -> int:
        """Tokens of the stream that count as targets."""
        return self.tokens

    def _empty(self, rows: int, seq_len: int) -> TokenIds:
        return np.empty((rows, seq_len + 1), dtype=np.int64)

    def _fill(
        self, batch: TokenIds, rows: TokenIds, ring: Part, numbers: TokenIds, seq_len: int, seed: int
    ) -> None:
        """Write the ring's sequences with these numbers into these rows of the batch."""
        for row, start in zip(rows, self._starts(ring, numbers, seq_len, seed), strict=True):
            self._read_ring(ring, int(start), batch[row])

    def _starts(self, ring: Part, numbers: TokenIds, seq_len: int, seed: int) -> TokenIds:
        """Where in the ring each of its sequences with these numbers begins."""
        windows = self._windows_of(ring, seq_len)
        epochs, within = np.divmod(numbers, windows)
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            key = order_key(seed, int(epoch))
            offset = int.from_bytes(hashlib.blake2b(key, person=b"offset").digest(), "little") % ring.tokens
            starts[chosen] = (offset + permute(within[chosen], windows, key) * seq_len) % ring.tokens
        return starts

    def _read_ring(self, ring: Part, start: int, row: TokenIds) -> None:
        """Fill `row` with the ring's tokens from `start` on.

        The ring is at least a row long, so it wraps once at most.
        """
        before_end = min(len(row), ring.tokens - start)
        row[:before_end] = self._reader.read(ring.first + start, ring.first + start + before_end)
        row[before_end:] = self._reader.read(ring.first, ring.first + len(row) - before_end)

    def windows(self, seq_len: int, batch: int, rows: slice | None = None) -> Iterator[TokenIds]:
        """The whole split in order, int64 (batch, seq_len + 1), every token a target exactly once.


        The first token is predicted from the separator; window w's input begins with the last target of
        window w-1. The end is padded with -1, inputs too, so that every batch has the same shape: leave out
        targets of -1, and give the model any id in their place. With `rows`, only these rows of each batch,
        for a rank.
        """
        if seq_len < 1 or batch < 1:
            raise UsageError(f"Windows of {seq_len} tokens, {batch} at once: both must be at least 1.")
        span = batch * seq_len
        before = self.separator_id
        for start in range(0, self.tokens, span):
            tokens = np.full(span + 1, -1, dtype=np.int64)
            stop = min(start + span, self.tokens)
            tokens[0] = before
            tokens[1 : stop - start + 1] = self._reader.read(start, stop)
            before = int(tokens[-1])
            yield np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len][
                rows or slice(None)
            ].copy()
