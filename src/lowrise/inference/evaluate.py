"""Exact evaluation: the mean over all predicted tokens of a split, not the mean of batch means.

(The code family of most published numbers divides the sum of n batch losses by n + 1, which makes a loss 0.3%
to 1% too low, and weights a short last batch like a full one. Numbers from here are not comparable with those
to that accuracy.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lowrise.config import RunConfig
from lowrise.console import Console
from lowrise.data import Corpus
from lowrise.data.index import TOKENIZER
from lowrise.data.progress import held_out_with_progress
from lowrise.distributed import World
from lowrise.distributed.fsdp import reshard
from lowrise.errors import LowriseError, UsageError
from lowrise.model.loss import next_token_loss, parts_of


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Loss of a model on a split."""

    loss: float
    """Mean cross-entropy in nats a token."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    """Total cross-entropy in bits over the bytes of the text; independent of the tokenizer."""
    tokens: int
    """Number of predicted tokens."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[np.ndarray | Tensor],
    *,
    text_bytes: int,
    chunk: int | None = None,
    total: Callable[[float, float], list[float]] | None = None,
) -> EvalResult:
    """Evaluate on all `batches`, each int64 of shape (B, L + 1), which together hold `text_bytes` bytes of
    text.

    Column j + 1 is predicted from columns 0 to j. Negative ids (-1, -100) are padding: not predicted, and
    read as token 0 where they stand as input, which no counted target may follow in its row. Batch sums are
    added in float64 in their order, so two evaluations of the same batches agree to the last bit. The model
    is in eval mode meanwhile; precision is the caller's (autocast). `total` turns this process's sums of
    nats and tokens into those of all processes that share the batches. Raises `LowriseError` if there is
    nothing to predict, `UsageError` if `text_bytes` is not positive.
    """
    if text_bytes < 1:
        raise UsageError(f"Bits per byte need the size of the text in bytes, at least 1, not {text_bytes}.")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            ids = torch.as_tensor(batch, dtype=torch.int64)
            tokens += int((parts_of(ids)[1] >= 0).sum())
            nats += float(next_token_loss(model, ids.to(device), reduction="sum", chunk=chunk))
    finally:
        model.train(was_training)
    if total is not None:
        nats, counted = total(nats, tokens)
        tokens = round(counted)
    if tokens == 0:
        raise LowriseError("There is no token to predict: the validation split is empty or all padding.")
    loss = nats / tokens
    return EvalResult(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / math.log(2) / text_bytes,
        tokens=tokens,
    )


class Stopped(Exception):
    """A stop signal came while a split was evaluated."""


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
    seq_len, sequences = config.train.seq_len, config.eval.batch_size
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
    share = result.tokens / corpus.valid.targets
    return dataclasses.replace(result, bits_per_byte=result.bits_per_byte / share)


def extra_texts(config: RunConfig, corpus: Corpus, console: Console) -> dict[str, Corpus]:
    """The texts of `eval.extra` by their names, tokenized as the corpus is. Raises as `prepare`."""
    tokenizer = corpus.directory / TOKENIZER
    return {
        name: held_out_with_progress([source], tokenizer, config.data, console)
        for name, source in config.eval.extra.items()
    }
