"""Next-token loss that never holds the logits of all tokens.

At vocabulary V the logits of N tokens take N V float32, far more than the rest of a small model. Here they
exist for one chunk of tokens at a time. The gradient is formed in the same pass (softmax minus one-hot is
known as soon as the logits are), so that nothing is computed twice, unlike with checkpointing:

for a chunk with hidden states h (c x d), head W (V x d), targets y:
1. z = h W.T
2. loss += sum(logsumexp(z) - z[y]) over targets that are not ignored, in float32;
   z <- softmax(z) - onehot(y), rows of ignored targets zero, in the memory of z, some rows at a time on a CPU
3. dh = z W; dW += z.T h, the sum in float32

The backward pass multiplies dh and dW by the incoming gradient and, for the mean, by 1 / (number of targets):
at step 2 and 3 entries are of order one, so that float16 and bfloat16 do not underflow.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrise.errors import UsageError

LEAST_CHUNK_TOKENS = 512
"""Fewer tokens make the products of steps 1 and 3 slower, as each chunk reads the head and adds to its
gradient."""
MOST_CHUNKS = 16
"""Of a pass that the chunk's size is not given for: what a GPU launches does not grow with the batch."""
ROWS_ELEMENTS_CPU = 1 << 19
"""Logits that step 2 works on at a time on a CPU: 2 MiB, which stay in the cache over its passes."""


def chunk_tokens(tokens: int, chunk: int | None = None) -> int:
    """Tokens whose logits exist at one time in a pass over `tokens`: `chunk`, or, for None, a sixteenth of
    them, but at least 512 (62 MiB in float32 at a vocabulary of 32,000).
    """
    if chunk is not None and chunk < 1:
        raise UsageError(f"The loss chunk must be at least 1 token, not {chunk}.")
    return max(1, min(tokens, chunk or max(LEAST_CHUNK_TOKENS, -(-tokens // MOST_CHUNKS))))


def softmax_rows(rows: int, vocabulary: int, *, on_cpu: bool) -> int:
    """Of the rows of a chunk, those that step 2 works on at a time."""
    return max(1, min(rows, ROWS_ELEMENTS_CPU // vocabulary)) if on_cpu else rows


def next_token_loss(
    model: nn.Module, tokens: Tensor, *, reduction: str = "mean", chunk: int | None = None
) -> Tensor:
    """Cross-entropy in nats of tokens[:, 1:] given tokens[:, :-1]; `tokens` (B, L + 1) int64, or packed
    samples, (B, 3, L): see `parts_of`.

    A negative target (padding) is ignored, and as an input it is read as token 0. `reduction` is "mean" over
    the targets that count (nan if none does, as in torch) or "sum". `chunk` bounds the tokens whose logits
    exist at one time (None: see `chunk_tokens`). A `Llama`, wrapped or not, computes the loss inside its
    forward; any other model must return logits, or an object with `.logits`, and chunks do not apply.
    Raises `UsageError` for packed samples and such a model.
    """
    inputs, targets, samples = parts_of(tokens)
    if hasattr(getattr(model, "module", model), "hidden"):
        packed = {} if samples is None else {"samples": samples}
        return cast(Tensor, model(inputs, targets, reduction=reduction, chunk=chunk, **packed))
    if samples is not None:
        raise UsageError(f"{type(model).__name__} cannot keep the samples of a row apart: lowrise.Llama can.")
    output = model(inputs)
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten().masked_fill(targets.flatten() < 0, -100),
        ignore_index=-100,
        reduction=_checked(reduction),
    )


def parts_of(batch: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets and numbers of samples (each B x L) of a batch as streams give it.

    `batch` is int64 (B, L + 1), a text whose tokens are each predicted from those before, or (B, 3, L):
    inputs, targets, and the number of the sample that each token belongs to, for rows that hold several.
    Negative targets do not count.
    """
    if batch.ndim == 3:
        return batch[:, 0], batch[:, 1], batch[:, 2]
    return batch[:, :-1].clamp_min(0), batch[:, 1:], None


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    reduction: str = "mean",
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits `hidden @ weight.T`: hidden (..., d), weight (V, d), targets (...) int64. A
    float32 scalar. `chunk` as in `chunk_tokens`.

    Equal to `F.cross_entropy` on the whole logits, its gradient as well. Under autocast the products are in
    the autocast dtype.
    """
    _checked(reduction)
    flat = hidden.flatten(0, -2)
    wanted = targets.flatten()
    device = hidden.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    total = cast(Tensor, _HeadLoss.apply(flat, weight, wanted, chunk_tokens(len(wanted), chunk), autocast))
    return total if reduction == "sum" else total / (wanted >= 0).sum()


def _checked(reduction: str) -> str:
    if reduction not in ("mean", "sum"):
        raise UsageError(f'The loss reduction must be "mean" or "sum", not {reduction!r}.')
    return reduction


class _HeadLoss(torch.autograd.Function):
    """Sum of cross-entropies over chunks, with the gradients formed on the way (steps 1 to 3 above)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, autocast: torch.dtype | None
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        compute = autocast or hidden.dtype
        wide = torch.promote_types(compute, torch.float32)
        W = weight.to(compute)
        dh = torch.empty_like(hidden) if wants_hidden else None
        dW = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        total = hidden.new_zeros((), dtype=wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), chunk):
                rows = slice(start, start + chunk)
                h = hidden[rows].to(compute)  # (c, d)
                z = h @ W.T  # (c, V)
                total += _losses_to_gradients_(z, targets[rows], wide, wants_hidden or wants_weight)
                if dh is not None:
                    dh[rows] = z @ W
                if dW is not None and compute == wide:
                    torch.addmm(dW, z.T, h, out=dW)
                elif dW is not None:
                    dW += z.T @ h
                del z  # before the next chunk's logits
        ctx.save_for_backward(dh, dW)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        dh, dW = ctx.saved_tensors
        # In the wide type: under a loss scale the scaled gradient must not be rounded before it is
        # multiplied.
        to_hidden = None if dh is None else (dh.to(gradient.dtype) * gradient).to(dh.dtype)
        to_weight = None if dW is None else (dW * gradient).to(ctx.weight_dtype)
        return to_hidden, to_weight, None, None, None


def _losses_to_gradients_(z: Tensor, targets: Tensor, wide: torch.dtype, wants_gradient: bool) -> Tensor:
    """Step 2 for logits z (c, V), which become their gradient where one is wanted; the sum of the losses."""
    at_once = softmax_rows(*z.shape, on_cpu=z.device.type == "cpu")
    total = z.new_zeros((), dtype=wide)
    for part, y in zip(z.split(at_once), targets.split(at_once), strict=True):
        counted = y >= 0
        index = torch.where(counted, y, 0).unsqueeze(1)
        log_p = part.to(wide).log_softmax(-1)
        total -= torch.where(counted, log_p.gather(1, index).squeeze(1), 0.0).sum()
        if not wants_gradient:
            continue
        gradient = log_p.exp_()
        gradient.scatter_add_(1, index, gradient.new_full((), -1.0).expand_as(index))
        part.copy_(gradient.mul_(counted.unsqueeze(1)))
    return total
