"""A run that is ready to continue texts: its weights in a `FrozenDecoder`, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lowrise.console import Console
from lowrise.data import Tokenizer
from lowrise.inference.batch import Batch
from lowrise.inference.decoder import FrozenDecoder
from lowrise.inference.options import Forms
from lowrise.inference.sampling import Sampling
from lowrise.inference.text import StopStrings, TextStream
from lowrise.runs.environment import autocast_for
from lowrise.runs.load import TrainedRun, load_run

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class TextModel:
    """What continues texts. Only read, so several threads may use one."""

    decoder: FrozenDecoder
    tokenizer: Tokenizer
    choice: str = ""
    """Which weights of the run these are, as a line; empty where it has no others."""


@dataclass(frozen=True)
class Piece:
    """What a step added to one text."""

    row: int
    text: str
    tokens: int
    """New tokens of this row so far, the separator that ended it not among them."""
    finish: Finish | None = None
    """Set in the last piece of a row: "stop" (a stop string, or the end of the document) or "length"."""


Load = Callable[[str | Path, str, Console], TrainedRun]
"""(place, device, console) -> the model there."""


def load_text_model(
    folder: str | Path,
    device: str,
    console: Console,
    *,
    forms: Forms = "auto",
    rows: int = 1,
    load: Load = load_run,
) -> TextModel:
    """The newest whole checkpoint of a run, or what `load` finds, ready to continue texts."""
    return text_model(load(folder, device, console), forms=forms, rows=rows, release=True)


def text_model(run: TrainedRun, *, forms: Forms = "auto", rows: int = 1, release: bool = False) -> TextModel:
    """A loaded model in the precision that its run computes in; `release`: as in `FrozenDecoder`, the run's
    model is left without weights."""
    kind = run.device.type
    with autocast_for(run.config, run.device):
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    decoder = FrozenDecoder(run.model, dtype=dtype, forms=forms, rows=rows, release=release)
    return TextModel(decoder, run.tokenizer, run.choice)


def continue_texts(
    model: TextModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Continue prompts, given as tokens without the separator that begins a document, all at a time.

    Yields a piece for every row at every step, in the order of the rows. Raises `UsageError` at once, not at
    the first piece, for a prompt that does not fit and an empty stop string.
    """
    separator = model.tokenizer.separator_id
    batch = Batch(
        model.decoder,
        [[separator, *prompt] for prompt in prompts],
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_token=separator,
        seeds=seeds,
    )
    rows = [_Row(i, TextStream(model.tokenizer, p), StopStrings(stop)) for i, p in enumerate(prompts)]
    return _pieces(batch, rows)


def _pieces(batch: Batch, rows: Sequence[_Row]) -> Iterator[Piece]:
    for new in batch:
        for row, token in zip(rows, new, strict=True):
            if row.ended:
                continue
            if token is None:
                yield row.end("stop")
                continue
            piece = row.push(token)
            batch.over[row.number] = row.ended
            yield piece
    for row in rows:
        if not row.ended:
            yield row.end("stop" if batch.stopped[row.number] else "length")


@dataclass
class _Row:
    """One text on its way."""

    number: int
    stream: TextStream
    stops: StopStrings
    tokens: int = 0
    ended: bool = False

    def push(self, token: int) -> Piece:
        self.tokens += 1
        text = self.stops.push(self.stream.push(token))
        self.ended = self.stops.found
        return Piece(self.number, text, self.tokens, "stop" if self.ended else None)

    def end(self, why: Finish) -> Piece:
        text = self.stops.push(self.stream.finish())
        self.ended = True
        if self.stops.found:
            return Piece(self.number, text, self.tokens, "stop")
        return Piece(self.number, text + self.stops.finish(), self.tokens, why)
