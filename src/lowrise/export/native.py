"""One safetensors file with the names of our own modules, for loops of one's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from lowrise import __version__
from lowrise.export.shards import WHOLE, save_tensors
from lowrise.layers.base import LowRankLayer
from lowrise.model.finite import rounded_to
from lowrise.runs.load import TrainedRun
from lowrise.runs.weights import model_tensors


def write_native(folder: Path, run: TrainedRun, dtype: torch.dtype) -> None:
    """Write `model.safetensors`, every parameter and saved buffer once, and `tokenizer.json`.

    Its metadata, all text: `lowrise` (version), `method`, `step`, `weights` (raw or ema), `recipe` (the run's
    config.toml), `model` (`LlamaConfig` as JSON) and `layers` (name -> class and rank, as JSON), enough to
    build the model again.
    """
    tensors = {
        name: (rounded_to(name, t.detach(), dtype) if t.is_floating_point() else t.detach()).contiguous()
        for name, t in model_tensors(run.model).items()
    }
    layers = {
        name: {"class": type(layer).__name__, "rank": layer.rank}
        for name, layer in run.model.named_modules()
        if isinstance(layer, LowRankLayer)
    }
    metadata = {
        "format": "pt",
        "lowrise": __version__,
        "method": run.config.method,
        "step": str(run.step),
        "weights": run.weights,
        "recipe": run.config.to_toml(),
        "model": json.dumps(dataclasses.asdict(run.model.config)),
        "layers": json.dumps(layers),
    }
    save_tensors(tensors, folder / WHOLE, metadata)
    run.tokenizer.write(folder / "tokenizer.json")
