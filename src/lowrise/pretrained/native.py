"""An export with our own names (`lowrise export --to safetensors`), as the model that it was."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lowrise.config import RunConfig, from_dict
from lowrise.config.places import named_code
from lowrise.errors import UsageError
from lowrise.export.shards import WHOLE
from lowrise.layers.base import is_adaptive, notify_layers
from lowrise.model import Llama
from lowrise.pretrained.folder import FolderTensors
from lowrise.runs.build import model_from
from lowrise.runs.weights import fit_ranks, model_tensors


@dataclass(frozen=True)
class Native:
    """What the file says, and its model, in evaluation mode."""

    config: RunConfig
    step: int
    model: Llama


def is_native(folder: Path) -> bool:
    """Whether the folder holds a file that `export/native.py` wrote."""
    return {"lowrise", "recipe", "model", "step"} <= _metadata(folder).keys()


def open_native(folder: Path) -> Native:
    """Build the model of the file's recipe and fill it. Raises `UsageError` for a file that does not fit what
    it says of itself, and, before anything of it is run, for one whose recipe names code.
    """
    about = _metadata(folder)
    try:
        values = tomllib.loads(about["recipe"])
        vocabulary, step = int(json.loads(about["model"])["vocab_size"]), int(about["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / WHOLE} has damaged metadata ({error}): export the run again.") from None
    if code := named_code(values):
        raise UsageError(
            f"{folder / WHOLE} is of a method from {', '.join(code)}, which would be run: give the run "
            "itself, or export it with --to hf."
        )
    config = from_dict(values, source=str(folder / WHOLE))
    model = model_from(config, vocabulary, torch.device("meta"))
    notify_layers(model, step, config.train.steps)
    there = FolderTensors(folder)
    fit_ranks(model, dict(there) if _adapts(model) else {})
    own = model_tensors(model.to_empty(device="cpu"))
    if own.keys() != there.keys():
        odd = min(own.keys() ^ there.keys())
        raise UsageError(
            f"{folder / WHOLE} does not fit its own recipe: {odd} differs. Export the run again."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            value = there[name]
            if value.shape != tensor.shape:
                raise UsageError(
                    f"{folder / WHOLE} does not fit its own recipe: {name} is {tuple(value.shape)}, not "
                    f"{tuple(tensor.shape)}. Export the run again."
                )
            tensor.copy_(value)
    return Native(config, step, model.eval())


def _adapts(model: Llama) -> bool:
    return any(is_adaptive(m) for m in model.modules())


def _metadata(folder: Path) -> dict[str, str]:
    file = folder / WHOLE
    if not file.is_file():
        return {}
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None
