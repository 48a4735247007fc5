"""What the stages share: configurations, random text, training steps."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from lowrise.config import RunConfig, load
from lowrise.data import Corpus
from lowrise.distributed import World
from lowrise.train.step import TrainStep

SMALL = ("nano", "tiny", "mini")


def is_small(preset: str) -> bool:
    return preset in SMALL


def sizes(options: argparse.Namespace) -> list[str]:
    """Presets of the stages that measure several."""
    return ["60m", "350m", "1b"] if options.preset == "60m" else [options.preset]


def vocabulary(preset: str) -> int:
    return 512 if is_small(preset) else 32_000


def config_of(options: argparse.Namespace, method: str, preset: str, **values: Any) -> RunConfig:
    """A method's configuration; bfloat16 on a GPU, rank a quarter of the width where it has factors. Keywords
    are dotted keys, with "__" for the dot."""
    fixed = {
        "method": method,
        "model.preset": preset,
        "model.vocab_size": vocabulary(preset),
        "train.device": options.device,
        "train.compile": options.compile,
    }
    return load(None, fixed | {key.replace("__", "."): value for key, value in values.items()})


class RandomText:
    """Stands for the training split: batch k is a function of k alone."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def batch(self, number: int, *, sequences: int, seq_len: int, seed: int, rows: slice) -> np.ndarray:
        draw = np.random.default_rng((seed, number))
        return draw.integers(self.vocab_size, size=(sequences, seq_len + 1), dtype=np.int64)[rows]

    def predicted(self, number: int, *, sequences: int, seq_len: int, seed: int) -> int:
        return sequences * seq_len


def random_corpus(vocab_size: int) -> Corpus:
    parts = SimpleNamespace(
        train=RandomText(vocab_size), tokenizer=SimpleNamespace(vocab_size=vocab_size), fingerprint="random"
    )
    return cast(Corpus, parts)


def train_step(config: RunConfig, corpus: Corpus | None = None) -> TrainStep:
    """The trainer's update, on random text where no other is given."""
    corpus = corpus or random_corpus(config.model.vocab_size or 0)
    return TrainStep(config, corpus, World(), notice=lambda text: None, say=lambda text: None)


def many_graphs() -> None:
    """Let every method have compiled blocks in one process; past its limit torch would go on without them,
    silently."""
    config: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit"):
        if hasattr(config, name):
            setattr(config, name, 512)
    if hasattr(config, "fail_on_recompile_limit_hit"):
        config.fail_on_recompile_limit_hit = True


@contextmanager
def no_waiting(step: TrainStep) -> Iterator[None]:
    """Within the block `optimizer.step` raises where it waits for the GPU."""
    inner = step.optimizer.step

    def watched(*arguments: Any, **options: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return inner(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step.optimizer.step = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        step.optimizer.step = inner  # type: ignore[method-assign]
