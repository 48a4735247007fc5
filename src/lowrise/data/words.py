"""How samples are stored: words, one a token, the separator at the end of each sample included.

word = 4 id + 2 (begins a sample) + 1 (counts in the loss)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lowrise.data.pieces import Cut
from lowrise.data.readers import Span
from lowrise.data.tokenizer import Tokenizer

BEGINS, COUNTS, BITS = 2, 1, 2


def num_words(vocab_size: int, samples: bool) -> int:
    """How many different words a shard may hold: the ids themselves, where it is of text."""
    return vocab_size << BITS if samples else vocab_size


def words_of_samples(
    samples: Sequence[Sequence[Span]], tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> list[npt.NDArray[Any]]:
    """The words of each sample, the separator that ends it included."""
    drops = tokenizer.cut is Cut.AT_SPACE
    plain = [
        span.text.removeprefix(" ") if drops and number else span.text
        for spans in samples
        for number, span in enumerate(spans)
        if not span.marked
    ]
    encoded = iter(tokenizer.encode_batch(plain))
    separator = tokenizer.separator_id
    found = []
    for spans in samples:
        ids: list[int] = []
        counts: list[int] = []
        for span in spans:
            new = tokenizer.encode_marked(span.text) if span.marked else next(encoded)
            if span.marked and not ids and new[:1] == [separator]:
                new = new[1:]  # every text is read after a separator anyway
            ids += new
            counts += [int(span.counts)] * len(new)
        if not (ids and counts[-1] and ids[-1] == separator):
            ids.append(separator)
            counts.append(COUNTS)
        words = (np.array(ids, dtype=np.int64) << BITS) | np.array(counts, dtype=np.int64)
        words[0] |= BEGINS
        found.append(words.astype(dtype))
    return found
