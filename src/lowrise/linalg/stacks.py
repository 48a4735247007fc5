"""Matrices of several shapes in few tensors: stacks, and stacks laid out one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as (batch, ...), to read only: one tensor alone is seen, not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Stacks of one shape as one, to read only: one alone is itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def laid_out(like: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, list[Tensor]]:
    """Room for tensors of these shapes, one after the other: all of it, flat, for what is done entry by
    entry, and the tensors in it.
    """
    sizes = [shape.numel() for shape in shapes]
    flat = like.new_empty(sum(sizes))
    return flat, [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def copied_out(stacks: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """Copies of tensors, those of one shape in a sequence, laid out: all of them, flat, and (batch, ...) of
    each sequence.
    """
    flat = torch.cat([t.reshape(-1) for tensors in stacks for t in tensors])
    parts = flat.split([len(tensors) * tensors[0].numel() for tensors in stacks])
    return flat, [
        part.view(len(tensors), *tensors[0].shape) for part, tensors in zip(parts, stacks, strict=True)
    ]
