"""The planned peak of an update against the bytes of tensors that are alive in one, for every method."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrise.config import load
from lowrise.layers import LowRankLayer
from lowrise.methods import METHODS
from lowrise.model import next_token_loss
from lowrise.runs.build import build_optimizer, model_from
from lowrise.runs.planner import Planned

VOCAB, L = 300, 64


class Alive(TorchDispatchMode):
    """Bytes of the storages that torch's operations return, while anything refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return output


def measured_peak(config: Any, vocabulary: int = VOCAB) -> int:
    """Of the first update, optimizer step included."""
    model = model_from(config, vocabulary, torch.device("cpu"))
    optimizer = build_optimizer(config, model)
    for module in model.modules():
        if isinstance(module, LowRankLayer):
            module.before_update(1, 100)
    batch = torch.randint(vocabulary, (config.train.global_batch_size, L + 1))
    alive = Alive()
    for tensor in [*model.parameters(), *model.buffers()]:
        alive.note(tensor)
    for state in optimizer.state.values():
        for tensor in state.values():
            alive.note(tensor)
    with alive:
        for part in batch.split(config.train.micro_batch_size or len(batch)):
            loss = next_token_loss(model, part, reduction="sum")
            loss.backward()
            del loss
        optimizer.step()
    return alive.peak


@pytest.mark.parametrize("size", ["nano", "tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_the_peak_is_planned_within_five_percent(method: str, size: str) -> None:
    batch = {"nano": (8, 0), "tiny": (8, 4)}[size]
    compare(method, size, *batch)


@pytest.mark.parametrize("method", ["adamw", "lowrank", "cola", "sltrain", "selfguided"])
def test_with_blocks_recomputed(method: str) -> None:
    compare(method, "nano", 8, 0, **{"model.recompute": "block"})


def test_a_large_vocabulary_on_a_cpu() -> None:
    """Logits of 1,024 tokens in two chunks, of which the softmax takes 16 rows at a time."""
    values = {"method": "adamw", "model.preset": "nano", "train.seq_len": L, "train.global_batch_size": 16}
    config = load(None, values)
    planned = Planned(config, 32_000, on_cpu=True).on_device().peak
    assert planned == pytest.approx(measured_peak(config, 32_000), rel=0.05)


def compare(method: str, size: str, batch: int, micro_batch: int, **more: Any) -> None:
    values = {
        "method": method,
        "model.preset": size,
        "train.seq_len": L,
        "train.global_batch_size": batch,
        "train.micro_batch_size": micro_batch,
    }
    config = load(None, values | more)
    assert Planned(config, VOCAB).on_device().peak == pytest.approx(measured_peak(config), rel=0.05)
