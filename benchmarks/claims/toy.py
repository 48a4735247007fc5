"""A small model and a text that every checkout has: for single steps of real gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import lowrise

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"  # 11 kB of English, as bytes
HEAD = 16


def model_of(width: int, *, layers: int = 2, rank: float | None = None, seed: int = 0) -> lowrise.Llama:
    """A Llama over bytes, heads of 16; with `rank` as factors, from a spectral start."""
    torch.manual_seed(seed)
    config = lowrise.LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 16 * 16,
        num_layers=layers,
        num_heads=width // HEAD,
        max_seq_len=128,
    )
    model = lowrise.Llama(config)
    if rank is not None:
        lowrise.factorize(model, layer="lowrank", rank=rank)
    return model


def batches(sequences: int = 8, length: int = 64, seed: int = 0) -> Iterator[Tensor]:
    """Windows of the text without end, (sequences, length + 1), drawn by a seed."""
    ids = torch.tensor(list(TEXT.read_bytes()), dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(ids) - length - 1, (sequences,), generator=generator)
        yield torch.stack([ids[s : s + length + 1] for s in starts.tolist()])


def loss_of(model: lowrise.Llama, batch: Tensor) -> Tensor:
    """The mean loss of the next byte."""
    return model(batch[:, :-1], batch[:, 1:])
