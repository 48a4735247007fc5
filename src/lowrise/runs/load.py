"""A trained run, loaded from its folder: the model of the newest whole checkpoint, its corpus or its
tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lowrise.checkpoint import Checkpoint
from lowrise.config import RunConfig, load
from lowrise.console import Console
from lowrise.data import Tokenizer
from lowrise.errors import LowriseError, UsageError
from lowrise.layers.base import notify_layers
from lowrise.model import Llama
from lowrise.runs.build import model_from
from lowrise.runs.chosen_weights import Weights, told
from lowrise.runs.directory import open_run, require_recipe
from lowrise.runs.environment import choose_device
from lowrise.runs.tail_average import take_average_
from lowrise.runs.weights import load_saved_model

# What helps a run whose newest weights are not finite.
EARLIER = "Begin a run from a checkpoint before it (init.run, init.step, a lower optimizer.lr), and use that."

# Fingerprint in a run whose weights came from elsewhere.
NO_CORPUS = "none: imported"


@dataclass(frozen=True)
class TrainedRun:
    """A model with its weights, in evaluation mode, and what is needed to use it."""

    config: RunConfig
    model: Llama
    tokenizer: Tokenizer
    step: int
    weights: Weights
    """The last ones, or with the average of the tail."""
    corpus: str
    """Fingerprint of the text that it was trained on, or `NO_CORPUS`."""
    device: torch.device

    @property
    def has_average(self) -> bool:
        """Whether there are other weights than the last ones."""
        return self.config.ema.start is not None

    @property
    def choice(self) -> str:
        """Which weights these are, as a line; empty for a run that has no others."""
        return told(self.weights) if self.has_average else ""


def load_run(
    folder: str | Path,
    device: str,
    console: Console,
    *,
    weights: Weights = "raw",
    step: int | None = None,
) -> TrainedRun:
    """The newest whole checkpoint of a run, or that of a step; a sentence if it has none, or no average where
    that is asked."""
    run = open_run(folder)
    config = load(run.config)
    chosen = choose_device(device)
    tokenizer = Tokenizer.load(run.tokenizer, separator_token=config.data.separator_token)
    if step is not None and step not in run.checkpoints.steps():
        there = ", ".join(map(str, run.checkpoints.steps())) or "none"
        raise UsageError(f"{folder} has no checkpoint of step {step}; it has {there}.")
    if step is not None:
        checkpoint: Checkpoint | None = run.checkpoints.load(step)
    else:
        checkpoint = run.checkpoints.newest(warn=lambda text: console.print(text, style="yellow"))
    if checkpoint is None:
        raise LowriseError(f"{folder} has no checkpoint yet: train it first.")
    require_recipe(checkpoint, config)
    model = model_from(config, tokenizer.vocab_size, chosen)
    notify_layers(model, checkpoint.step, config.train.steps)
    load_saved_model(model, checkpoint)
    if weights == "ema":
        take_average_(model, config, checkpoint)
    corpus = checkpoint.numbers["corpus"]
    return TrainedRun(config, model.eval(), tokenizer, checkpoint.step, weights, corpus, chosen)
