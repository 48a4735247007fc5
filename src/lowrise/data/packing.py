"""Samples for fine-tuning as batches: several to a row, none across rows, each predicted from itself alone.

1. A sample of n words (its tokens and the separator at the end) takes n places of a row: the inputs are a
   separator and all tokens but the last, the targets all tokens, those of the prompt set to -1. Of a sample
   longer than a row the first L places are used, or none (`without_overlong`); one without a target that
   counts in these is left out.
2. Rows of L places are packed by best fit, the longest samples first (Johnson et al. 1974), those of one
   length in an order that the seed draws. The rows of an epoch are the same in every epoch.
3. Epoch e visits the rows in a keyed permutation, as `TokenStream` does its windows. So batch k is a pure
   function of (corpus, seed, k), and a rank reads its rows alone.

A batch is int64 (rows, 3, L): inputs, targets, and the number of the sample within its row, by which
attention is kept within a sample and positions begin anew (`lowrise.model.loss.parts_of`). What is left of a
row is one more such sample, of separators without targets.
"""

from __future__ import annotations

import copy
import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrise.data.batches import TokenStream, order_key, permute
from lowrise.data.mixture import Part
from lowrise.data.shards import TokenIds
from lowrise.data.words import BEGINS, BITS, COUNTS
from lowrise.errors import UsageError

_SCANNED = 2**22  # words at a time


@dataclass(frozen=True)
class SampleCounts:
    """What becomes of the samples of a split in sequences of a length."""

    samples: int
    """All, those that are left out among them."""
    cut: int
    """Longer than a sequence: their end is cut off."""
    left_out: int
    """Longer than a sequence, and dropped for it or because nothing of the completion is left."""
    rows: int
    """Sequences that the others fill."""
    used: float
    """Share of the places of these that hold a token."""


@dataclass(frozen=True)
class Rows:
    """Rows of samples: row i has the samples `order[ends[i - 1] : ends[i]]`."""

    order: TokenIds
    ends: TokenIds

    def __len__(self) -> int:
        return len(self.ends)

    def samples(self, row: int) -> TokenIds:
        return self.order[self.ends[row - 1] if row else 0 : self.ends[row]]


def packed(lengths: TokenIds, capacity: int) -> Rows:
    """Best fit, longest first, equals in the order given: every length is 1 to `capacity`."""
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # places left -> rows
    rooms: list[int] = []  # the keys of it, ascending
    for sample in np.argsort(-lengths, kind="stable"):
        length = int(lengths[sample])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        rows[row].append(int(sample))
        left = room - length
        if left:
            if left not in with_room:
                insort(rooms, left)
            with_room.setdefault(left, []).append(row)
    flat = [sample for row in rows for sample in row]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return Rows(np.array(flat, dtype=np.int64), ends)


class SampleStream(TokenStream):
    """One split of a corpus of samples; `tokens` counts prompts, completions and separators, `text_bytes` the
    completions alone."""

    drops_overlong = False

    def without_overlong(self) -> SampleStream:
        """The stream that leaves samples out which are longer than a sequence."""
        stream = copy.copy(self)
        stream.drops_overlong = True
        stream._packings = {}
        return stream

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._packings: dict[tuple[Any, ...], Rows] = {}

    def read(self, start: int, stop: int) -> TokenIds:
        return super().read(start, stop) >> BITS

    @cached_property
    def _begins(self) -> TokenIds:
        """Where the samples begin, and the end of the last."""
        parts = [
            start + np.flatnonzero(self._reader.read(start, min(start + _SCANNED, self.tokens)) & BEGINS)
            for start in range(0, self.tokens, _SCANNED)
        ]
        return np.concatenate([*parts, [self.tokens]]).astype(np.int64)

    @cached_property
    def targets(self) -> int:
        return sum(
            int((self._reader.read(start, min(start + _SCANNED, self.tokens)) & COUNTS).sum())
            for start in range(0, self.tokens, _SCANNED)
        )

    def _usable(self, ring: Part, seq_len: int) -> tuple[TokenIds, TokenIds]:
        """The ring's samples that have a target in a sequence, and the places that they take."""
        begins = self._begins[:-1]
        samples = np.flatnonzero((begins >= ring.first) & (begins < ring.first + ring.tokens))
        lengths = self._begins[samples + 1] - self._begins[samples]
        keeps = np.ones(len(samples), dtype=bool)
        for i in np.flatnonzero(lengths > seq_len):
            keeps[i] = not self.drops_overlong and bool(np.any(self._words(samples[i], seq_len) & COUNTS))
        return samples[keeps], np.minimum(lengths[keeps], seq_len)

    def _words(self, sample: int, most: int) -> TokenIds:
        start, stop = self._begins[sample], self._begins[sample + 1]
        return self._reader.read(int(start), int(min(stop, start + most)))

    def _packing(self, ring: Part, seq_len: int, seed: int | None) -> Rows:
        """The ring's rows; without a seed, samples of one length keep their order."""
        key = (ring.first, ring.tokens, seq_len, seed)
        if key not in self._packings:
            samples, lengths = self._usable(ring, seq_len)
            if seed is not None and len(samples):
                drawn = hashlib.blake2b(f"lowrise packing 1, seed {seed}".encode()).digest()
                order = permute(np.arange(len(samples), dtype=np.int64), len(samples), drawn)
                samples, lengths = samples[order], lengths[order]
            rows = packed(lengths, seq_len)
            self._packings[key] = Rows(samples[rows.order], rows.ends)
        return self._packings[key]

    def _windows_of(self, ring: Part, seq_len: int) -> int:
        if seq_len < 1:
            raise UsageError(f"The sequence length is {seq_len}: it must be at least 1.")
        rows = len(self._packing(ring, seq_len, None))
        if not rows:
            of = f" of {ring.name}" if ring.name else ""
            raise UsageError(
                f"No sample of the {self.name} split{of} has a part of its completion within {seq_len:,} "
                "tokens: raise train.seq_len."
            )
        return rows

    def predicted(self, k: int, *, sequences: int, seq_len: int, seed: int) -> int:
        batch = self.batch(k, sequences=sequences, seq_len=seq_len, seed=seed)
        return int((batch[:, 1] >= 0).sum())

    def _empty(self, rows: int, seq_len: int) -> TokenIds:
        """Rows without a sample."""
        batch = np.zeros((rows, 3, seq_len), dtype=np.int64)
        batch[:, 0], batch[:, 1] = self.separator_id, -1
        return batch

    def _fill(
        self, batch: TokenIds, rows: TokenIds, ring: Part, numbers: TokenIds, seq_len: int, seed: int
    ) -> None:
        windows = self._windows_of(ring, seq_len)
        packing = self._packing(ring, seq_len, seed)
        epochs, within = np.divmod(numbers, windows)
        for epoch in np.unique(epochs):
            chosen = np.flatnonzero(epochs == epoch)
            places = permute(within[chosen], windows, order_key(seed, int(epoch)))
            for row, place in zip(rows[chosen], places, strict=True):
                self._write(batch[row], packing.samples(int(place)))

    def _write(self, row: npt.NDArray[np.int64], samples: TokenIds) -> None:
        """Fill a row of `_empty` with samples."""
        at = 0
        for number, sample in enumerate(samples):
            words = self._words(int(sample), row.shape[1])
            ids, end = words >> BITS, at + len(words)
            row[0, at + 1 : end] = ids[:-1]  # after the separator that is there
            row[1, at:end] = np.where(words & COUNTS, ids, -1)
            row[2, at:end] = number
            at = end
        row[2, at:] = len(samples)

    def windows(self, seq_len: int, batch: int, rows: slice | None = None) -> Iterator[TokenIds]:
        """All samples, packed in a fixed order: int64 (batch, 3, seq_len), as `batch` gives them. The last
        rows may be without a sample, so that every batch has the same shape.
        """
        if seq_len < 1 or batch < 1:
            raise UsageError(f"Windows of {seq_len} tokens, {batch} at once: both must be at least 1.")
        whole = Part("", 0, self.tokens)
        packing, total = self._packing(whole, seq_len, None), self._windows_of(whole, seq_len)
        for first in range(0, total, batch):
            found = self._empty(batch, seq_len)
            for row in range(min(batch, total - first)):
                self._write(found[row], packing.samples(first + row))
            yield found[rows or slice(None)].copy()

    def counts(self, seq_len: int) -> SampleCounts:
        """What becomes of the samples in sequences of this length."""
        whole = Part("", 0, self.tokens)
        samples = len(self._begins) - 1
        usable, lengths = self._usable(whole, seq_len)
        cut = int((self._begins[usable + 1] - self._begins[usable] > seq_len).sum())
        rows = sum(len(self._packing(ring, seq_len, None)) for ring in self._rings())
        used = float(lengths.sum()) / max(1, rows * seq_len)
        return SampleCounts(samples, cut, samples - len(usable), rows, used)
