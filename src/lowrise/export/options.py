"""The flags of `lowrise export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lowrise.runs.chosen_weights import Weights

Target = Literal["hf", "safetensors", "gguf"]


@dataclass(kw_only=True)
class ExportOptions:
    """Write a run's newest checkpoint in a form that others read."""

    run: Positional[Path]
    """Folder of the run."""
    to: Target = "hf"
    """hf: a Hugging Face folder. gguf: one file for llama.cpp and its kin. safetensors: one file with our own
    names."""
    form: Literal["dense", "factored"] | None = None
    """hf: dense, a plain Llama (the default), or factored, every factor a linear layer of its own."""
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "float32"
    """How weights are stored: float32, bfloat16 or float16; for gguf float32, float16 or q8_0."""
    out: Path | None = None
    """Folder to write; none: RUN/export/ and a name after the format."""
    weights: Weights = "raw"
    """raw: the last weights; ema: with the average that the recipe's [ema] kept."""
    shard_size: str | None = None
    """hf: largest file of weights; none: 5GB."""
    force: bool = False
    """Replace an earlier export in the same place."""
