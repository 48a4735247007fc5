"""Evaluation of a run's held-out split, in the run's precision."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.export.evaluate import EvalResult, evaluate
from lowrise.signals import StopRequest


class Stopped(Exception):
    """A stop signal came while a split was evaluated."""


def autocast_for(config: RunConfig, device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic over float32 weights where the configuration asks for it."""
    precision = config.train.precision
    enabled = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def evaluate_split(
    model: nn.Module, corpus: Corpus, config: RunConfig, tokens: int = 0, stop: StopRequest | None = None
) -> EvalResult:
    """Token-weighted loss over the held-out split, or over about its first `tokens` tokens.

    Bits per byte of a part take the bytes of a token to be those of the whole split. Raises `Stopped` soon
    after a stop was requested.
    """
    seq_len, sequences = config.train.seq_len, config.eval.sequences
    passes = max(1, tokens // (seq_len * sequences)) if tokens else None

    def windows() -> Iterator[np.ndarray]:
        for batch in itertools.islice(corpus.valid.windows(seq_len, sequences), passes):
            if stop:
                raise Stopped
            yield batch

    result = evaluate(model, windows(), text_bytes=corpus.valid.text_bytes)
    share = result.tokens / len(corpus.valid)
    return dataclasses.replace(result, bits_per_byte=result.bits_per_byte / share)
