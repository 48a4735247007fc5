"""A trained run, loaded from its folder: the model of the newest whole checkpoint, its corpus or its
tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lowrise.config import RunConfig, load
from lowrise.data import Tokenizer
from lowrise.data.progress import prepare_with_progress
from lowrise.errors import LowriseError
from lowrise.export.generate import generate
from lowrise.layers import LowRankLayer
from lowrise.model import Llama
from lowrise.train.build import model_from
from lowrise.train.environment import choose_device
from lowrise.train.evaluation import autocast_for, evaluate_split
from lowrise.train.run_directory import open_run, require_recipe
from lowrise.train.weights import load_saved_model


@dataclass(frozen=True)
class TrainedRun:
    """A model with its weights, in evaluation mode, and what is needed to use it."""

    config: RunConfig
    model: Llama
    tokenizer: Tokenizer
    step: int
    corpus: str
    """Fingerprint of the text that it was trained on."""
    device: torch.device


def load_run(folder: str | Path, device: str, console: Console) -> TrainedRun:
    """The newest whole checkpoint of a run; a sentence if it has none."""
    run = open_run(folder)
    config = load(run.config)
    chosen = choose_device(device)
    tokenizer = Tokenizer.load(run.tokenizer, separator_token=config.data.separator_token)
    checkpoint = run.checkpoints.newest(
        warn=lambda text: console.print(text, style="yellow", highlight=False)
    )
    if checkpoint is None:
        raise LowriseError(f"{folder} has no checkpoint yet: train it first.")
    require_recipe(checkpoint, config)
    model = model_from(config, tokenizer.vocab_size, chosen)
    for layer in model.modules():
        if isinstance(layer, LowRankLayer) and checkpoint.step:
            layer.before_update(checkpoint.step, config.train.steps)
    load_saved_model(model, checkpoint)
    return TrainedRun(config, model.eval(), tokenizer, checkpoint.step, checkpoint.numbers["corpus"], chosen)


def evaluate_run(folder: str | Path, device: str, console: Console) -> dict[str, Any]:
    """Exact validation numbers of a run over the whole held-out split of its corpus."""
    run = load_run(folder, device, console)
    corpus = prepare_with_progress(run.config.data, console)
    if corpus.fingerprint != run.corpus:
        console.print(
            "The text of this run has changed since it was trained: these numbers are of the text as it is.",
            style="yellow",
        )
    with autocast_for(run.config, run.device):
        result = evaluate_split(run.model, corpus, run.config)
    return {
        "step": run.step,
        "val_loss": result.loss,
        "val_perplexity": result.perplexity,
        "val_bits_per_byte": result.bits_per_byte,
        "val_tokens": result.tokens,
    }


def generate_from_run(
    folder: str | Path, prompt: str, console: Console, *, device: str = "auto", **options: Any
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece; `options` are those of `generate`."""
    run = load_run(folder, device, console)
    separator = run.tokenizer.separator_id
    tokens: list[int] = []
    # Prompt and new tokens are decoded together: alone, new ones lose the space before their first word.
    known = run.tokenizer.encode(prompt)
    shown = run.tokenizer.decode(known)
    with autocast_for(run.config, run.device):
        for token in generate(run.model, [separator, *known], stop_token=separator, **options):
            tokens.append(token)
            text = run.tokenizer.decode([*known, *tokens])
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may need several tokens
                yield text[len(shown) :]
                shown = text
