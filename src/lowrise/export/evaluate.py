"""Exact evaluation: the mean over all predicted tokens of a split, not the mean of batch means.

(The code family of most published numbers divides the sum of n batch losses by n + 1, which makes a loss 0.3%
to 1% too low, and weights a short last batch like a full one. Numbers from here are not comparable with those
to that accuracy.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lowrise.errors import LowriseError, UsageError
from lowrise.model.loss import DEFAULT_CHUNK_TOKENS, next_token_loss


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
    chunk: int | None = DEFAULT_CHUNK_TOKENS,
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
            tokens += int((ids[:, 1:] >= 0).sum())
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
