"""`data.max_tokens`: how much of the training text is prepared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from lowrise.data.config import DataConfig

# Stored bytes of a token at most: text has about 4, runs of white space more; compressed text has fewer.
MOST_BYTES_PER_TOKEN = 16


class File(Protocol):
    """What is needed of a source file (`corpora.SourceFile`)."""

    @property
    def source(self) -> str: ...

    @property
    def split(self) -> str | None: ...

    @property
    def tail_from(self) -> int | None: ...

    @property
    def held_draws(self) -> tuple[float, ...] | None: ...


def token_limits(config: DataConfig) -> dict[str, int]:
    """Most training tokens of each entry of `data.source` in a mixture, or of all together (""); none where
    `data.max_tokens` sets none."""
    if not config.max_tokens:
        return {}
    if not config.weights:
        return {"": config.max_tokens}
    total = sum(config.weights)
    shares = zip(config.source, config.weights, strict=True)
    return {source: math.ceil(config.max_tokens * weight / total) for source, weight in shares}


def within(files: Sequence[tuple[str, int]], limits: Mapping[str, int]) -> list[int]:
    """Numbers of the files, given as (source, stored bytes), without those that begin where the limit has
    surely been reached: they are neither hashed nor read."""
    found: list[int] = []
    sizes: dict[str, int] = {}
    for number, (source, size) in enumerate(files):
        stream = source if source in limits else ""
        if stream not in limits or sizes.get(stream, 0) <= limits[stream] * MOST_BYTES_PER_TOKEN:
            found.append(number)
        sizes[stream] = sizes.get(stream, 0) + size
    return found


class TokenLimit:
    """How many training tokens are still wanted of each source of a mixture, or of all text.

    The last document ends where there are enough, and reading goes on with the next text that is wanted:
    another source, or what is held out.
    """

    def __init__(self, files: Sequence[File], limits: Mapping[str, int]) -> None:
        self._files = files
        self._left = dict(limits)
        self.jumped = False

    def _stream(self, number: int) -> str | None:
        """The name of the limit that a file falls under."""
        file = self._files[number]
        if file.split == "valid":
            return None
        return file.source if file.source in self._left else "" if "" in self._left else None

    def count(self, tokens_by_file: Mapping[str, int]) -> None:
        """Training tokens that are there already, by the number of their file."""
        for number, tokens in tokens_by_file.items():
            stream = self._stream(int(number))
            if stream is not None:
                self._left[stream] -= tokens

    def reached(self, number: int) -> bool:
        """Whether no more training text of this file is wanted."""
        stream = self._stream(number)
        return stream is not None and self._left[stream] <= 0

    def next_file(self, number: int) -> int | None:
        """The file to go on with when the limit of a file has been reached; None: there is none."""
        stream = self._stream(number)
        following = range(number + 1, len(self._files))
        return next((n for n in following if self._stream(n) != stream), None)

    def can_jump(self, number: int) -> bool:
        """Not over the few held-out documents of this very file."""
        file = self._files[number]
        return file.tail_from is None and file.held_draws is None
