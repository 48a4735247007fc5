"""Evaluation of a run's held-out split, in the run's precision."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from lowrise.config import RunConfig
from lowrise.data import Corpus
from lowrise.dist import World
from lowrise.dist.fully_sharded import reshard
from lowrise.export.evaluate import EvalResult, evaluate


class Stopped(Exception):
    """A stop signal came while a split was evaluated."""


def autocast_for(config: RunConfig, device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic over float32 weights where the configuration asks for it."""
    precision = config.train.precision
    enabled = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def evaluate_split(
    model: nn.Module,
    corpus: Corpus,
    config: RunConfig,
    tokens: int = 0,
    stop: Callable[[], bool] | None = None,
    world: World | None = None,
) -> EvalResult:
    """Token-weighted loss over the held-out split, or over about its first `tokens` tokens.

    Bits per byte of a part take the bytes of a token to be those of the whole split. Raises `Stopped` soon
    after `stop` became true. Ranks of a `world` share the rows of each pass, and all get the result.
    """
    world = world or World()
    seq_len, sequences = config.train.seq_len, config.eval.sequences
    passes = max(1, tokens // (seq_len * sequences)) if tokens else None

    def windows() -> Iterator[np.ndarray]:
        shares = corpus.valid.windows(seq_len, sequences, world.share(sequences))
        for batch in itertools.islice(shares, passes):
            if stop is not None and stop():
                raise Stopped
            # More ranks than rows leave some without any. They read padding, which counts nothing,
            # since ranks that share weights by rows make every forward pass together.
            yield batch if len(batch) else np.full((1, seq_len + 1), -1)

    try:
        result = evaluate(model, windows(), text_bytes=corpus.valid.text_bytes, total=world.total)
    finally:
        reshard(model)  # else the next update would begin with what these passes have left gathered
    share = result.tokens / len(corpus.valid)
    return dataclasses.replace(result, bits_per_byte=result.bits_per_byte / share)
