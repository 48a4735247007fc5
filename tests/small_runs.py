"""A corpus and runs small enough for a test: 2 layers, width 64, a few hundred documents."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import torch

from lowrise.checkpoint import CheckpointStore
from lowrise.config import RunConfig, load
from lowrise.console import Console
from lowrise.data import Corpus, prepare
from lowrise.distributed import World
from lowrise.train import RunDirectory, train
from lowrise.train.display import Display
from lowrise.train.loop import Trainer

WORDS = [
    "the",
    "rank",
    "of",
    "a",
    "matrix",
    "is",
    "small",
    "and",
    "its",
    "norm",
    "is",
    "bounded",
    "by",
    "one",
    "when",
    "every",
    "step",
    "keeps",
    "both",
    "factors",
    "in",
    "balance",
]


# Files of methods from outside the package over which the contract tests run too.
PLUGINS = os.environ.get("LOWRISE_TEST_PLUGINS", "")

# Settings under which what a method does now and then happens within the eight updates of these runs.
OFTEN: dict[str, dict[str, Any]] = {
    "relora": {
        "layer.merge_every": 3,
        "optimizer.reset_every": 3,
        "schedule.cycle": 3,
        "schedule.restart_warmup": 2,
    },
}


def write_text(path: Path, documents: int = 200) -> Path:
    """A JSONL file of made-up sentences, the same on every call."""
    draw = random.Random(1)
    lines = (
        json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(20, 60)))}) for _ in range(documents)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def overrides(folder: Path, method: str, **more: Any) -> dict[str, Any]:
    """Dotted settings of a tiny run on the text in `folder`."""
    values: dict[str, Any] = {
        "method": method,
        "model.preset": "nano",
        "data.source": [str(folder / "text.jsonl")],
        "data.valid_fraction": 0.1,
        "data.vocab_size": 300,
        "data.cache": str(folder / "cache"),
        "train.steps": 8,
        "train.global_batch_size": 4,
        "train.seq_len": 16,
        "train.device": "cpu",
        "train.threads": 1,
        "eval.every": 4,
        "checkpoint.every": 4,
        "log.every": 1,
        "log.telemetry_every": 4,
        "log.tensorboard": False,
        "sample.tokens": 8,
    }
    if PLUGINS:  # in the processes that tests start too
        values["plugin"] = PLUGINS.split(os.pathsep)
    return values | OFTEN.get(method, {}) | more


def config_for(folder: Path, method: str, **more: Any) -> RunConfig:
    return load(None, overrides(folder, method, **more))


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def corpus_of(config: RunConfig) -> Corpus:
    return prepare(config.data)


def trainer_for(config: RunConfig, run: Path, world: World | None = None) -> Trainer:
    display = Display(console(), config.train.steps)
    return Trainer(config, corpus_of(config), RunDirectory(run), display, world)


def run_training(config: RunConfig, run: Path, world: World | None = None) -> dict[str, Any]:
    """Train to the end; returns the summary."""
    return train(config, corpus_of(config), RunDirectory(run), console(), world)


def final_tensors(run: Path, step: int) -> dict[str, bytes]:
    """Bytes of the model and optimizer of a checkpoint, file by file."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = [f for f in sorted(folder.glob("*.safetensors")) if not f.name.startswith("random")]
    return {file.name: file.read_bytes() for file in files}


def saved_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Whole weights of a checkpoint, however many ranks wrote it."""
    return CheckpointStore(run / "checkpoints").load(step).parts["model"]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
